"""Updates with a number in them that no update may hold: NaN, infinities, and what is out of range."""

import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from tests.support.malformed.bodies import (
    BIG_MODEL,
    NAN,
    PATTERNS,
    SIZES,
    UPDATE,
    Case,
    Shapes,
    body_of,
    compressed,
    fixed,
    offsets,
    zeros,
)


def _with_item(shapes: Shapes, name: str, *, element: int, item: bytes, padding: int = 0) -> bytes:
    data = zeros(shapes)
    begin = offsets(shapes)[name][0] + element * len(item)
    data[begin : begin + len(item)] = item
    return body_of(shapes, data=bytes(data), padding=padding)


def _bits(dtype: str, kind: str) -> bytes:
    return PATTERNS[dtype][kind].to_bytes(SIZES[dtype], "little")


def not_finite() -> Iterator[Case]:
    for name in ("wide", "narrow", "brain", "double"):
        dtype, shape = UPDATE[name]
        count = math.prod(shape)
        for kind in PATTERNS[dtype]:
            for element in (0, count // 2, count - 1):
                body = _with_item(UPDATE, name, element=element, item=_bits(dtype, kind))
                yield Case(
                    f"{kind}-in-{dtype}-at-{element}", "non-finite", fixed(body), (f"'{name}'", f"element {element};")
                )
    body = _with_item(UPDATE, "scale", element=0, item=_bits("F32", NAN))
    yield Case("nan-in-a-scalar", "non-finite", fixed(body), ("'scale'",))
    yield Case("nan-in-chunks-of-1", "non-finite", fixed(body), ("'scale'",), chunk_bytes=1)
    yield Case("nan-compressed", "non-finite", lambda: compressed(body), ("'scale'",), {"Content-Encoding": "zstd"})


def not_finite_at_edges() -> Iterator[Case]:
    count = BIG_MODEL["big"][1][0]
    for padding in range(4):
        data_start = len(body_of({**BIG_MODEL}, data=b"", padding=padding))
        for edge in (1 << 16, 1 << 20, 4 << 20, 5 << 20):
            at_edge = (edge - data_start) // 4
            for element in (at_edge - 1, at_edge, at_edge + 1) if padding == 0 else (at_edge,):
                yield _in_big(f"nan-{padding}-from-{edge}-at-{element}", element, padding=padding)
    yield _in_big("nan-in-big-at-first", 0)
    yield _in_big("nan-in-big-at-last", count - 1)
    yield _in_big("nan-in-big-at-last-in-chunks", count - 1, chunk_bytes=100_003)


def _in_big(name: str, element: int, *, padding: int = 0, chunk_bytes: int | None = None) -> Case:
    return Case(
        name,
        "non-finite",
        lambda: _with_item(BIG_MODEL, "big", element=element, item=_bits("F32", NAN), padding=padding),
        ("'big'", f"element {element};"),
        model=BIG_MODEL,
        chunk_bytes=chunk_bytes,
    )


def out_of_range() -> Iterator[Case]:
    above = float(np.nextafter(np.float32(1024), np.float32(2048)))
    values: Sequence[tuple[str, str, bytes]] = (
        ("just-above", "wide", struct.pack("<f", above)),
        ("just-below-minus", "wide", struct.pack("<f", -above)),
        ("largest-f32", "wide", struct.pack("<f", 3.4028234e38)),
        ("scalar", "scale", struct.pack("<f", 1e6)),
        ("largest-f16", "narrow", struct.pack("<e", 65504)),
        ("smallest-f16", "narrow", struct.pack("<e", -1025)),
        ("largest-bf16", "brain", b"\x7f\x7f"),
        ("bf16", "brain", b"\x80\xc6"),
        ("largest-f64", "double", struct.pack("<d", 1.7e308)),
        ("f64-just-above", "double", struct.pack("<d", math.nextafter(1024, 2048))),
        ("largest-integer", "counter", struct.pack("<q", 2**63 - 1)),
        ("smallest-integer", "counter", struct.pack("<q", -(2**63))),
        ("integer-beyond-2^53", "counter", struct.pack("<q", 2**53 + 1)),
    )
    for label, name, item in values:
        body = _with_item(UPDATE, name, element=0, item=item)
        named = (f"'{name}'", "at most")
        yield Case(f"out-of-range-{label}", "value-out-of-range", fixed(body), named, as_model="")
