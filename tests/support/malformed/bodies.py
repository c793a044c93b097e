"""Builds safetensors bodies by hand, right and wrong ones: a library would refuse to write most of them."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
PATTERNS = {
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
    parameters: dict[int, int] = {zstd.CompressionParameter[name]: value for name, value in options.items()}
    return zstd.compress(body, options=parameters or None)


def fixed(body: bytes) -> Callable[[], bytes]:
    """Makes a body that is at hand already."""
    return lambda: body


def of_header(name: str, header: Mapping[str, Any], *named: str, data: bytes | None = None) -> Case:
    """Makes a case of a header that describes tensors wrongly."""
    text = json.dumps(header).encode()
    return Case(name, "malformed-update", fixed(framed(text, bytes(zeros(UPDATE)) if data is None else data)), named)
