"""A corpus of malformed updates of one small model (and of one of 5 MiB), each with the problem it must be answered by.

Everything is built by hand from bytes: a library would refuse to write most of it.
"""

import base64
import hashlib
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "BOOL": 1}

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]

MODEL: Shapes = {
    "wide": ("F32", (5, 7)),
    "narrow": ("F16", (6,)),
    "brain": ("BF16", (3, 2)),
    "double": ("F64", (4,)),
    "scale": ("F32", ()),
    "empty": ("F32", (0, 3)),
    "counter": ("I64", (3,)),
    "mask": ("BOOL", (5,)),
}
BIG_MODEL: Shapes = {"big": ("F32", (5 << 18,)), "bias": ("F32", (7,))}

UPDATE: Shapes = {name: tensor for name, tensor in MODEL.items() if name != "mask"}

NAN, POSITIVE, NEGATIVE, SIGNALLING = "nan", "infinity", "minus-infinity", "signalling-nan"
_PATTERNS = {
    "F64": {NAN: 0x7FF8 << 48, POSITIVE: 0x7FF0 << 48, NEGATIVE: 0xFFF0 << 48, SIGNALLING: (0x7FF0 << 48) + 1},
    "F32": {NAN: 0x7FC0 << 16, POSITIVE: 0x7F80 << 16, NEGATIVE: 0xFF80 << 16, SIGNALLING: (0x7F80 << 16) + 1},
    "F16": {NAN: 0x7E00, POSITIVE: 0x7C00, NEGATIVE: 0xFC00, SIGNALLING: 0x7C01},
    "BF16": {NAN: 0x7FC0, POSITIVE: 0x7F80, NEGATIVE: 0xFF80, SIGNALLING: 0x7F81},
}


@dataclass(frozen=True)
class Case:
    """One upload: `body` makes its bytes when asked; `named` must stand in the refusal's detail."""

    name: str
    slug: str
    body: Callable[[], bytes]
    named: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    model: Shapes = field(default_factory=lambda: MODEL, repr=False)
    chunk_bytes: int | None = None
    as_model: str | None = None
    """The problem as an initial model, where it differs; "" where it would be a fine one."""

    def content(self) -> bytes | Iterator[bytes]:
        """Gives the body as bytes, or chunk by chunk where it travels without a Content-Length."""
        body = self.body()
        if self.chunk_bytes is None:
            return body
        return (body[begin : begin + self.chunk_bytes] for begin in range(0, len(body), self.chunk_bytes))


def framed(header: bytes, data: bytes = b"", *, announced: int | None = None) -> bytes:
    """Puts the length before a header's bytes, or a lie about it."""
    length = len(header) if announced is None else announced
    return length.to_bytes(8, "little") + header + data


def offsets(shapes: Shapes) -> dict[str, tuple[int, int]]:
    """Lays tensors out one after the other."""
    laid_out, begin = {}, 0
    for name, (dtype, shape) in shapes.items():
        end = begin + SIZES[dtype] * math.prod(shape)
        laid_out[name] = (begin, end)
        begin = end
    return laid_out


def entries(shapes: Shapes) -> dict[str, Any]:
    """Describes tensors as a header does."""
    laid_out = offsets(shapes)
    return {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": list(laid_out[name])}
        for name, (dtype, shape) in shapes.items()
    }


def zeros(shapes: Shapes) -> bytearray:
    """Gives the data of tensors of zeros."""
    return bytearray(max((end for _, end in offsets(shapes).values()), default=0))


def body_of(
    shapes: Shapes, *, data: bytes | None = None, metadata: Mapping[str, Any] | None = None, padding: int = 0
) -> bytes:
    """Writes a file with these tensors; without metadata it says `num_examples` 1."""
    header = {"__metadata__": {"num_examples": "1"} if metadata is None else metadata, **entries(shapes)}
    text = json.dumps(header).encode() + b" " * padding
    return framed(text, bytes(zeros(shapes)) if data is None else data)


def model_body(shapes: Shapes) -> bytes:
    """Writes the initial model that the corpus is wrong about."""
    header = json.dumps(entries(shapes)).encode()
    return framed(header, bytes(zeros(shapes)))


def good_body(shapes: Shapes = UPDATE, *, padding: int = 0) -> bytes:
    """Writes an update that is right, to show that only the fault of a case is at fault."""
    return body_of(shapes, padding=padding)


def compressed(body: bytes, **options: int) -> bytes:
    """Compresses into one zstd frame."""
    parameters = {zstd.CompressionParameter[name]: value for name, value in options.items()}
    return zstd.compress(body, options=parameters or None)


def corpus() -> list[Case]:
    """Gives every case; their names differ."""
    families = (
        _truncated,
        _header_lengths,
        _not_json,
        _entries_of_tensors,
        _layouts,
        _structures,
        _not_finite,
        _not_finite_at_edges,
        _out_of_range,
        _num_examples,
        _metrics,
        _metadata_of_other_kinds,
        _digests,
        _media_types,
        _too_large,
        _zstd,
    )
    return [case for family in families for case in family()]


def _fixed(body: bytes) -> Callable[[], bytes]:
    return lambda: body


def _truncated() -> Iterator[Case]:
    whole = good_body()
    data_start = 8 + int.from_bytes(whole[:8], "little")
    cuts = {0, 1, 7, 8, 9, data_start // 2, data_start - 1, data_start, data_start + 1, len(whole) - 1}
    for _, end in offsets(UPDATE).values():
        cuts |= {data_start + end - 1, data_start + end, data_start + end + 1}
    for cut in sorted(cuts):
        if cut < len(whole):
            yield Case(f"truncated-at-{cut}", "malformed-update", _fixed(whole[:cut]), ("ends after",))
    yield Case("truncated-in-chunks-of-1", "malformed-update", _fixed(whole[:-1]), ("ends after",), chunk_bytes=1)
    yield Case("one-byte-more", "malformed-update", _fixed(whole + b"\0"), ("follow the last tensor",))
    yield Case("one-byte-more-in-chunks", "malformed-update", _fixed(whole + b"\0"), chunk_bytes=7)
    yield Case("twice", "malformed-update", _fixed(whole * 2), ("follow the last tensor",))


def _header_lengths() -> Iterator[Case]:
    whole = good_body()
    length = int.from_bytes(whole[:8], "little")
    lies = {
        "0": 0,
        "1": 1,
        "7": 7,
        "2^16": 1 << 16,
        "2^20+1": (1 << 20) + 1,
        "10^8": 10**8,
        "2^31": 1 << 31,
        "2^32": 1 << 32,
        "2^53": 1 << 53,
        "2^63": 1 << 63,
        "2^64-1": (1 << 64) - 1,
        "longer-than-the-body": len(whole) + 1000,
        "one-more": length + 1,
        "one-less": length - 1,
    }
    for name, lie in lies.items():
        body = lie.to_bytes(8, "little") + whole[8:]
        yield Case(f"header-length-{name}", "malformed-update", _fixed(body))
    giant = json.dumps({"__metadata__": {"num_examples": "1", "note": "x" * 900_000}, **entries(UPDATE)}).encode()
    yield Case("giant-header", "too-large", _fixed(framed(giant, bytes(zeros(UPDATE)))), as_model="")
    yield Case(
        "pickle", "malformed-update", _fixed(b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94.")
    )
    yield Case("zip", "malformed-update", _fixed(b"PK\x03\x04" + b"\0" * 60))
    yield Case("text", "malformed-update", _fixed(b"hello, I am no safetensors file at all\n"))
    yield Case("json", "malformed-update", _fixed(b'{"num_examples": 5}'))
    yield Case("noise", "malformed-update", _fixed(hashlib.sha512(b"noise").digest() * 20))


def _not_json() -> Iterator[Case]:  # noqa: PLR0914 - a list of faults
    plain = json.dumps({"__metadata__": {"num_examples": "1"}, **entries(UPDATE)})
    inner = plain[1:-1]
    wide = json.dumps(entries(UPDATE)["wide"])
    faults: dict[str, bytes] = {
        "array": f"[{plain}]".encode(),
        "string": b'"wide"',
        "number": b"12345",
        "null": b"null",
        "nothing": b"  ",
        "latin-1": plain.replace("wide", "wïde").encode("latin-1"),
        "utf-16": plain.encode("utf-16"),
        "byte-order-mark": plain.encode("utf-8-sig"),
        "space-before": b" " + plain.encode(),
        "newline-after": plain.encode() + b"\n",
        "nul-after": plain.encode() + b"\0",
        "comment": plain[:-1].encode() + b"/* */}",
        "trailing-comma": plain[:-1].encode() + b",}",
        "single-quotes": plain.replace('"', "'").encode(),
        "two-objects": (plain + "{}").encode(),
        "unclosed": plain[:-1].encode(),
        "duplicate-tensor": f'{{{inner}, "wide": {wide}}}'.encode(),
        "duplicate-metadata": f'{{{inner}, "__metadata__": {{"num_examples": "7"}}}}'.encode(),
        "duplicate-num-examples": plain.replace(
            '"num_examples": "1"', '"num_examples": "1", "num_examples": "2"'
        ).encode(),
        "duplicate-dtype": plain.replace('"dtype": "F64"', '"dtype": "F64", "dtype": "F64"').encode(),
        "duplicate-escaped": f'{{{inner}, "\\u0077ide": {wide}}}'.encode(),
        "nan": plain.replace("[0, 140]", "[NaN, 140]").encode(),
        "infinity": plain.replace("[0, 140]", "[0, Infinity]").encode(),
        "minus-infinity": plain.replace("[0, 140]", "[-Infinity, 140]").encode(),
        "1e999": plain.replace("[0, 140]", "[0, 1e999]").encode(),
        "exponent": plain.replace("[0, 140]", "[0, 1.4e2]").encode(),
        "leading-zero": plain.replace("[0, 140]", "[0, 0140]").encode(),
        "5000-digits": plain.replace("[0, 140]", f"[0, {'1' * 5000}]").encode(),
        "deep-arrays": b"[" * 60_000,
        "deep-arrays-closed": b"[" * 30_000 + b"]" * 30_000,
        "deep-objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "deep-in-metadata": f'{{"__metadata__": {{"a": {"[" * 20_000}{"]" * 20_000}}}}}'.encode(),
        "raw-newline-in-name": plain.replace("wide", "wi\nde").encode(),
    }
    for name, header in faults.items():
        yield Case(f"header-is-not-json-{name}", "malformed-update", _fixed(framed(header, bytes(zeros(UPDATE)))))


def _entries_of_tensors() -> Iterator[Case]:
    changes: dict[str, dict[str, Any]] = {
        "dtype-f8": {"dtype": "F8_E4M3"},
        "dtype-f128": {"dtype": "F128"},
        "dtype-complex": {"dtype": "C64"},
        "dtype-lower-case": {"dtype": "f32"},
        "dtype-with-space": {"dtype": "F32 "},
        "dtype-empty": {"dtype": ""},
        "dtype-number": {"dtype": 5},
        "dtype-null": {"dtype": None},
        "dtype-list": {"dtype": ["F32"]},
        "dtype-object": {"dtype": {"F32": 1}},
        "dtype-10-kilobytes": {"dtype": "F" * 10_000},
        "shape-string": {"shape": "5,7"},
        "shape-null": {"shape": None},
        "shape-number": {"shape": 35},
        "shape-object": {"shape": {"0": 5}},
        "shape-nested": {"shape": [[5, 7]]},
        "shape-of-strings": {"shape": ["5", "7"]},
        "shape-of-booleans": {"shape": [True, 35]},
        "shape-negative": {"shape": [-5, -7]},
        "shape-minus-one": {"shape": [5, -1]},
        "shape-float": {"shape": [5.0, 7.0]},
        "shape-of-nulls": {"shape": [None, 7]},
        "rank-9": {"shape": [5, 7, 1, 1, 1, 1, 1, 1, 1]},
        "rank-20000": {"shape": [1] * 20_000},
        "shape-2^31": {"shape": [1 << 31]},
        "shape-2^32": {"shape": [1 << 32]},
        "shape-2^63": {"shape": [1 << 63]},
        "shape-2^64": {"shape": [1 << 64]},
        "shape-0-by-2^62": {"shape": [0, 1 << 62]},
        "shape-product-wraps-to-0": {"shape": [1 << 32, 1 << 32]},
        "shape-product-wraps-to-35": {"shape": [(1 << 40), (1 << 24), 35]},
        "shape-product-2^320": {"shape": [1 << 40] * 8},
        "offsets-none": {"data_offsets": []},
        "offsets-one": {"data_offsets": [140]},
        "offsets-three": {"data_offsets": [0, 70, 140]},
        "offsets-null": {"data_offsets": None},
        "offsets-string": {"data_offsets": "0-140"},
        "offsets-of-strings": {"data_offsets": ["0", "140"]},
        "offsets-of-floats": {"data_offsets": [0.0, 140.0]},
        "offsets-of-booleans": {"data_offsets": [False, 140]},
        "offsets-reversed": {"data_offsets": [140, 0]},
        "offsets-negative": {"data_offsets": [-140, 0]},
        "offsets-too-short": {"data_offsets": [0, 136]},
        "offsets-too-long": {"data_offsets": [0, 144]},
        "offsets-odd": {"data_offsets": [1, 141]},
        "offsets-empty-span": {"data_offsets": [0, 0]},
        "offsets-2^63": {"data_offsets": [(1 << 63) - 140, 1 << 63]},
        "offsets-2^64": {"data_offsets": [(1 << 64) - 1, (1 << 64) + 139]},
        "offsets-beyond-the-body": {"data_offsets": [1 << 30, (1 << 30) + 140]},
        "further-key": {"stride": [7, 1]},
    }
    for name, change in changes.items():
        header = {"__metadata__": {"num_examples": "1"}, **entries(UPDATE)}
        header["wide"] = header["wide"] | change
        yield _of_header(f"entry-{name}", header)
    for missing in ("dtype", "shape", "data_offsets"):
        header = {"__metadata__": {"num_examples": "1"}, **entries(UPDATE)}
        header["wide"] = {key: value for key, value in header["wide"].items() if key != missing}
        yield _of_header(f"entry-without-{missing}", header, "'wide'")
    for name, entry in {
        "list": ["F32", [5, 7], [0, 140]],
        "null": None,
        "string": "F32",
        "number": 7,
        "true": True,
    }.items():
        yield _of_header(f"entry-is-{name}", {"__metadata__": {"num_examples": "1"}, **entries(UPDATE), "wide": entry})
    million = json.dumps({"wide": {"dtype": "F32", "shape": [1] * 10**6, "data_offsets": [0, 4]}}).encode()
    yield Case("entry-rank-1000000", "too-large", _fixed(framed(million, b"\0" * 4)), as_model="malformed-update")
    names = {
        "empty": "",
        "nul": "wi\0de",
        "newline": "wide\r\nSet-Cookie: a=b",
        "escape": "\x1b[31mwide",
        "right-to-left": "wi\u202ede",
        "lone-surrogate": "wide\ud800",
        "513-characters": "w" * 513,
        "50000-characters": "w" * 50_000,
    }
    for label, tensor_name in names.items():
        header = {"__metadata__": {"num_examples": "1"}, **entries({**UPDATE, tensor_name: ("F32", ())})}
        yield _of_header(f"tensor-name-{label}", header, data=bytes(zeros(UPDATE)) + b"\0" * 4)


def _of_header(name: str, header: Mapping[str, Any], *named: str, data: bytes | None = None) -> Case:
    text = json.dumps(header).encode()
    return Case(name, "malformed-update", _fixed(framed(text, bytes(zeros(UPDATE)) if data is None else data)), named)


def _layouts() -> Iterator[Case]:
    laid_out = offsets(UPDATE)

    def moved(**places: tuple[int, int]) -> dict[str, Any]:
        header = {"__metadata__": {"num_examples": "1"}, **entries(UPDATE)}
        for tensor, place in places.items():
            header[tensor] = header[tensor] | {"data_offsets": list(place)}
        return header

    after = max(end for _, end in laid_out.values())
    yield _of_header("layout-the-same-bytes-twice", moved(scale=(0, 4)), "overlaps")
    yield _of_header("layout-overlap-by-one-byte", moved(narrow=(139, 151)), "'narrow'", "overlaps")
    yield _of_header("layout-inside-another", moved(double=(8, 40)), "overlaps")
    yield _of_header("layout-hole-at-the-beginning", moved(wide=(after, after + 140)), "hole")
    yield _of_header("layout-hole-of-one-byte", moved(narrow=(141, 153)), "'narrow'", "hole")
    yield _of_header(
        "layout-hole-in-the-middle", moved(counter=(after + 8, after + 32)), data=bytes(zeros(UPDATE)) + b"\0" * 40
    )
    yield _of_header("layout-empty-tensor-outside", moved(empty=(after + 100, after + 100)), "'empty'")
    yield _of_header("layout-empty-tensor-inside", moved(empty=(70, 70)))


def _structures() -> Iterator[Case]:
    def differing(name: str, shapes: Shapes, *named: str) -> Case:
        return Case(f"structure-{name}", "structure-mismatch", lambda: body_of(shapes), named, as_model="")

    for name, (dtype, _) in UPDATE.items():
        if dtype != "I64":
            shapes = {other: tensor for other, tensor in UPDATE.items() if other != name}
            yield differing(f"without-{name}", shapes, f"'{name}'", "missing")
    yield differing("with-another", {**UPDATE, "extra": ("F32", (2,))}, "'extra'")
    yield differing("with-an-empty-other", {**UPDATE, "extra": ("F32", (0,))}, "'extra'")
    yield differing("with-a-path", {**UPDATE, "../../etc/passwd": ("F32", ())}, "'../../etc/passwd'")
    yield differing("with-a-template", {**UPDATE, "{0.__class__}%s": ("F32", ())}, "'{0.__class__}%s'")
    yield differing("with-bool", MODEL, "'mask'", "BOOL")
    yield differing("nothing-but-metadata", {}, "missing")
    renamed = {("Wide" if name == "wide" else name): tensor for name, tensor in UPDATE.items()}
    yield differing("renamed", renamed, "'Wide'")
    types = {
        "wide": ("I64", (5, 7)),
        "narrow": ("BF16", (6,)),
        "brain": ("F16", (3, 2)),
        "double": ("I64", (4,)),
        "scale": ("F64", ()),
        "counter": ("F64", (3,)),
        "empty": ("F64", (0, 3)),
    }
    for name, tensor in types.items():
        yield differing(f"type-of-{name}", {**UPDATE, name: tensor}, f"'{name}'", UPDATE[name][0])
    shapes_of = {
        "transposed": ("wide", (7, 5)),
        "flattened": ("wide", (35,)),
        "with-one-more-axis": ("wide", (5, 7, 1)),
        "with-one-row-more": ("wide", (6, 7)),
        "without-elements": ("wide", (0, 7)),
        "of-a-scalar": ("scale", (1,)),
        "of-nothing-turned": ("empty", (3, 0)),
        "of-nothing-filled": ("empty", (1, 3)),
        "of-a-counter": ("counter", (1, 3)),
    }
    for label, (name, shape) in shapes_of.items():
        yield differing(f"shape-{label}", {**UPDATE, name: (UPDATE[name][0], shape)}, f"'{name}'")
    # Half a terabyte is announced, and nothing of it is sent.
    huge = {**UPDATE, "wide": ("F32", (1 << 17, 1 << 20))}
    header = json.dumps({"__metadata__": {"num_examples": "1"}, **entries(huge)}).encode()
    yield Case("structure-half-a-terabyte", "structure-mismatch", _fixed(framed(header)), ("'wide'",), as_model="")
    yield Case("structure-no-key-at-all", "structure-mismatch", _fixed(framed(b"{}")))


def _with_item(shapes: Shapes, name: str, *, element: int, item: bytes, padding: int = 0) -> bytes:
    data = zeros(shapes)
    begin = offsets(shapes)[name][0] + element * len(item)
    data[begin : begin + len(item)] = item
    return body_of(shapes, data=bytes(data), padding=padding)


def _bits(dtype: str, kind: str) -> bytes:
    return _PATTERNS[dtype][kind].to_bytes(SIZES[dtype], "little")


def _not_finite() -> Iterator[Case]:
    for name in ("wide", "narrow", "brain", "double"):
        dtype, shape = UPDATE[name]
        count = math.prod(shape)
        for kind in _PATTERNS[dtype]:
            for element in (0, count // 2, count - 1):
                body = _with_item(UPDATE, name, element=element, item=_bits(dtype, kind))
                yield Case(
                    f"{kind}-in-{dtype}-at-{element}", "non-finite", _fixed(body), (f"'{name}'", f"element {element};")
                )
    body = _with_item(UPDATE, "scale", element=0, item=_bits("F32", NAN))
    yield Case("nan-in-a-scalar", "non-finite", _fixed(body), ("'scale'",))
    yield Case("nan-in-chunks-of-1", "non-finite", _fixed(body), ("'scale'",), chunk_bytes=1)
    yield Case("nan-compressed", "non-finite", lambda: compressed(body), ("'scale'",), {"Content-Encoding": "zstd"})


def _not_finite_at_edges() -> Iterator[Case]:
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


def _out_of_range() -> Iterator[Case]:
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
        yield Case(f"out-of-range-{label}", "value-out-of-range", _fixed(body), named, as_model="")


def _of_metadata(name: str, metadata: Mapping[str, Any], *named: str, slug: str = "invalid-metadata") -> Case:
    return Case(
        name,
        slug,
        lambda: body_of(UPDATE, metadata=metadata),
        named,
        as_model="" if slug == "invalid-metadata" else None,
    )


def _num_examples() -> Iterator[Case]:
    texts = {
        "empty": "",
        "0": "0",
        "000": "000",
        "minus-1": "-1",
        "minus-0": "-0",
        "1e18": "1" + "0" * 18,
        "exponent": "1e3",
        "2^53": str(2**53),
        "2^63": str(2**63),
        "2^64+1": str(2**64 + 1),
        "5000-digits": "9" * 5000,
        "17-zeros-and-5": "0" * 17 + "5",
        "space-after": "5 ",
        "space-before": " 5",
        "newline-after": "5\n",
        "plus": "+5",
        "arabic": "٥",
        "full-width": "５",
        "superscript": "²",
        "float": "5.0",
        "hexadecimal": "0x10",
        "underscore": "1_000",
        "comma": "1,000",
        "nan": "NaN",
        "infinity": "Infinity",
        "true": "true",
        "null": "null",
        "list": "[5]",
        "quoted": '"5"',
    }
    for name, text in texts.items():
        yield _of_metadata(f"num-examples-{name}", {"num_examples": text}, "num_examples")
    yield _of_metadata("num-examples-missing", {}, "num_examples")
    yield _of_metadata("num-examples-other-case", {"Num_Examples": "5"}, "num_examples")
    for name, value in {
        "true": True,
        "number": 5,
        "float": 5.5,
        "null": None,
        "list": [5],
        "object": {"value": 5},
    }.items():
        yield _of_metadata(f"num-examples-json-{name}", {"num_examples": value}, slug="malformed-update")


def _metrics() -> Iterator[Case]:
    texts = {
        "empty": "",
        "not-json": "loss=1",
        "nan": '{"loss": NaN}',
        "infinity": '{"loss": Infinity}',
        "minus-infinity": '{"loss": -Infinity}',
        "1e999": '{"loss": 1e999}',
        "1e301": '{"loss": 1e301}',
        "400-digits": f'{{"loss": {"9" * 400}}}',
        "5000-digits": f'{{"loss": {"9" * 5000}}}',
        "string": '{"loss": "0.5"}',
        "true": '{"loss": true}',
        "null-value": '{"loss": null}',
        "list-value": '{"loss": [1]}',
        "nested": '{"loss": {"train": 1}}',
        "deep": f'{{"loss": {"[" * 5000}{"]" * 5000}}}',
        "array": "[1, 2]",
        "number": "5",
        "null": "null",
        "65-names": json.dumps({f"m{index}": 1 for index in range(65)}),
        "duplicate": '{"loss": 1, "loss": 2}',
        "empty-name": '{"": 1}',
        "name-with-space": '{"my loss": 1}',
        "name-with-nul": '{"lo\\u0000ss": 1}',
        "name-with-newline": '{"loss\\n": 1}',
        "name-with-markup": '{"<script>": 1}',
        "name-of-65": json.dumps({"m" * 65: 1}),
        "name-not-ascii": '{"потеря": 1}',
        "trailing": '{"loss": 1} x',
    }
    for name, text in texts.items():
        yield _of_metadata(f"metrics-{name}", {"num_examples": "1", "metrics": text}, "metrics")


def _metadata_of_other_kinds() -> Iterator[Case]:
    for name, value in {"list": [], "null": None, "string": "num_examples", "number": 1, "true": True}.items():
        header = {"__metadata__": value, **entries(UPDATE)}
        yield _of_header(f"metadata-is-{name}", header, "__metadata__")
    values: dict[str, dict[str, Any]] = {
        "number": {"a": 1},
        "null": {"a": None},
        "object": {"metrics": {"loss": 1}},
        "nul": {"a": "\0"},
        "lone-surrogate": {"a": "\udfff"},
        "name-with-nul": {"a\0": ""},
        "name-empty": {"": ""},
        "1025-names": {f"k{index}": "" for index in range(1025)},
    }
    for name, further in values.items():
        yield _of_metadata(f"metadata-{name}", {"num_examples": "1"} | further, slug="malformed-update")


def _digests() -> Iterator[Case]:
    body = good_body()
    right = base64.b64encode(hashlib.sha256(body).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(body + b"!").digest()).decode()

    def with_digest(name: str, header: str, slug: str = "invalid-request") -> Case:
        return Case(f"digest-{name}", slug, _fixed(body), headers={"Content-Digest": header})

    yield with_digest("of-other-bytes", f"sha-256=:{wrong}:", "digest-mismatch")
    yield with_digest("second-of-two", f"sha-512=:AAAA:, sha-256=:{wrong}:", "digest-mismatch")
    yield with_digest("of-zeros", f"sha-256=:{'A' * 43}=:", "digest-mismatch")
    yield with_digest("in-hexadecimal", f"sha-256={hashlib.sha256(body).hexdigest()}")
    yield with_digest("without-colons", f"sha-256={right}")
    yield with_digest("too-short", "sha-256=:AAAA:")
    yield with_digest("empty", "sha-256=::")
    yield with_digest("nothing", "sha-256=")
    yield with_digest("not-base64", f"sha-256=:{'*' * 44}:")
    coded = compressed(body)
    of_coded = base64.b64encode(hashlib.sha256(coded).digest()).decode()
    headers = {"Content-Encoding": "zstd", "Content-Digest": f"sha-256=:{of_coded}:"}
    yield Case("digest-of-the-compressed-bytes", "digest-mismatch", _fixed(coded), headers=headers)


def _media_types() -> Iterator[Case]:
    body = good_body()
    for media_type in (
        "",
        "text/plain",
        "application/json",
        "application/x-pickle",
        "application/x-safetensors",
        "multipart/form-data; boundary=x",
        "application/*",
        "*/*",
        "application/octet-stream, application/octet-stream",
        "x" * 5000,
    ):
        label = media_type[:40] or "none"
        yield Case(
            f"media-type-{label}",
            "unsupported-media-type",
            _fixed(body),
            ("application/vnd.safetensors",),
            {"Content-Type": media_type},
        )
    for coding in (
        "gzip",
        "br",
        "deflate",
        "compress",
        "x-zstd",
        "zstd, zstd",
        "identity, zstd",
        "aws-chunked",
        "?",
        "",
    ):
        yield Case(
            f"coding-{coding or 'empty'}",
            "unsupported-media-type",
            _fixed(body),
            ("zstd",),
            {"Content-Encoding": coding},
        )


def _too_large() -> Iterator[Case]:
    size = 8 + 200_000
    yield Case("too-large-by-length", "too-large", lambda: good_body() + bytes(size), as_model="malformed-update")
    yield Case(
        "too-large-in-chunks",
        "too-large",
        lambda: good_body() + bytes(2 << 20),
        as_model="malformed-update",
        chunk_bytes=1 << 16,
    )
    yield Case(
        "too-large-and-no-tensors", "too-large", lambda: b"\xff" * (2 << 20), ("at most",), as_model="malformed-update"
    )


def _zstd() -> Iterator[Case]:
    def coded(name: str, body: Callable[[], bytes], *named: str) -> Case:
        return Case(f"zstd-{name}", "malformed-update", body, named, {"Content-Encoding": "zstd"})

    def bomb(name: str, body: Callable[[], bytes]) -> Case:
        headers = {"Content-Encoding": "zstd"}
        return Case(f"zstd-bomb-{name}", "too-large", body, headers=headers, as_model="malformed-update")

    whole = good_body()
    frame = compressed(whole)
    empty_frame = compressed(b"")
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    checked = compressed(whole, checksum_flag=1)
    sized = _frame_with_content_size(whole, len(whole))
    assert zstd.decompress(sized) == whole
    yield coded("not-zstd", _fixed(whole), "zstd")
    yield coded("noise", _fixed(hashlib.sha512(b"zstd").digest()))
    yield coded("nothing", _fixed(b""))
    yield coded("magic-only", _fixed(frame[:4]), "ends before")
    yield coded("gzip-inside", _fixed(b"\x1f\x8b\x08" + bytes(64)), "zstd")
    for cut in (1, 5, len(frame) // 2, len(frame) - 1):
        yield coded(f"truncated-at-{cut}", _fixed(frame[:cut]), "ends before")
    yield coded("byte-after", _fixed(frame + b"\0"), "single frame")
    yield coded("frame-after", _fixed(frame + frame), "single frame")
    yield coded("two-frames-for-one-body", _fixed(compressed(whole[:60]) + compressed(whole[60:])))
    yield coded("empty-frame", _fixed(empty_frame))
    yield coded("empty-frame-before", _fixed(empty_frame + frame))
    yield bomb("of-100000-empty-frames", lambda: empty_frame * 100_000)
    yield coded("7000-empty-frames", lambda: empty_frame * 7_000, "single frame")
    yield coded("100000-empty-frames-after", lambda: frame + empty_frame * 7_000, "single frame")
    yield coded("skippable-frame-before", _fixed(skippable + frame))
    yield coded("skippable-frame-after", _fixed(frame + skippable), "single frame")
    yield coded("skippable-frame-only", _fixed(skippable))
    yield coded("skippable-frame-of-4-gibibytes", _fixed(b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(1000)))
    yield coded("nested", lambda: compressed(frame))
    yield coded("checksum-broken", _fixed(checked[:-1] + bytes([checked[-1] ^ 1])), "zstd")
    yield coded("content-size-too-small", _fixed(_frame_with_content_size(whole, len(whole) - 1)))
    yield coded("content-size-too-large", _fixed(_frame_with_content_size(whole, len(whole) + 1)))
    yield coded("content-size-2^63", _fixed(_frame_with_content_size(whole, 1 << 63)))
    yield coded("unknown-dictionary", _fixed(b"\x28\xb5\x2f\xfd\x23\x39\x30\0\0\x05\x01\0\0"), "zstd")
    yield coded("reserved-bit", _fixed(b"\x28\xb5\x2f\xfd\x08\x58\x01\0\0"), "zstd")
    for log in (24, 27, 31):
        yield coded(f"window-of-2^{log}", lambda log=log: _frame_with_window(whole, log), "window")
    yield bomb("of-zeros", lambda: _bomb(b""))
    yield bomb("behind-a-good-update", lambda: _bomb(whole))
    yield bomb("in-the-header", lambda: _bomb((60_000).to_bytes(8, "little") + b"{"))
    yield bomb("of-blanks", lambda: _bomb((90_000).to_bytes(8, "little") + b"{" + b" " * 89_999, b" "))
    yield bomb("of-repeated-blocks", lambda: _frame_of_repeats(8192))


def _frame_with_content_size(content: bytes, size: int) -> bytes:
    """Writes one raw block in a single-segment frame (RFC 8878, 3.1.1) that announces any size as its content's."""
    block = ((len(content) << 3) | 1).to_bytes(3, "little") + content
    window = bytes([3 << 3])
    return b"\x28\xb5\x2f\xfd" + bytes([0b1100_0000]) + window + size.to_bytes(8, "little") + block


def _frame_with_window(content: bytes, log: int) -> bytes:
    """Writes one raw block in a frame that asks for a window of 2^log bytes."""
    block = ((len(content) << 3) | 1).to_bytes(3, "little") + content
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + block


def _frame_of_repeats(blocks: int) -> bytes:
    """Writes blocks of 128 KiB of one repeated byte: four bytes on the wire for each (32,768:1)."""
    repeated = [
        ((128 << 10 << 3) | 2 | (number == blocks - 1)).to_bytes(3, "little") + b"\0" for number in range(blocks)
    ]
    return b"\x28\xb5\x2f\xfd\x00" + bytes([7 << 3]) + b"".join(repeated)


def _bomb(beginning: bytes, filler: bytes = b"\0", mebibytes: int = 64) -> bytes:
    compressor = zstd.ZstdCompressor(level=1)
    block = filler * (1 << 20)
    parts = [
        compressor.compress(beginning),
        *(compressor.compress(block) for _ in range(mebibytes)),
        compressor.flush(),
    ]
    return b"".join(parts)
