"""The tensor types that may travel, and their exact conversion to and from float64."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
Float64Array = NDArray[np.float64]

CARRIERS: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
"""safetensors type -> the numpy type that carries its bytes; BF16 travels as its bits, BOOL as 0 or 1."""


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """The bit layout of an IEEE-like binary format, as far as magnitudes need it."""

    signed: np.dtype[Any]
    unsigned: np.dtype[Any]
    infinity_bits: int

    @property
    def magnitude_mask(self) -> int:
        return (1 << (8 * self.signed.itemsize - 1)) - 1


FLOAT_FORMATS: Final[dict[str, FloatFormat]] = {
    "F64": FloatFormat(np.dtype("<i8"), np.dtype("<u8"), 0x7FF << 52),
    "F32": FloatFormat(np.dtype("<i4"), np.dtype("<u4"), 0xFF << 23),
    "F16": FloatFormat(np.dtype("<i2"), np.dtype("<u2"), 0x1F << 10),
    "BF16": FloatFormat(np.dtype("<i2"), np.dtype("<u2"), 0xFF << 7),
}


def magnitude_bits(values: Values, dtype: str) -> int:
    """Gives the bits of the largest |value|; at or above the format's `infinity_bits` something is not finite.

    The bits of IEEE magnitudes are ordered like integers, with infinity and every NaN at the top. One signed and one
    unsigned maximum find the largest positive and the largest negative value without a temporary array.
    """
    layout = FLOAT_FORMATS[dtype]
    if values.size == 0:
        return 0
    positive = int(values.view(layout.signed).max())
    largest = int(values.view(layout.unsigned).max())
    negative = largest & layout.magnitude_mask if largest > layout.magnitude_mask else 0
    return max(positive, negative)


def magnitude_from_bits(bits: int, dtype: str) -> float:
    """Gives the magnitude that `magnitude_bits` found, as float64, exactly."""
    item = np.array([bits], dtype=FLOAT_FORMATS[dtype].unsigned).view(CARRIERS[dtype])
    return float(as_float64(item, dtype)[0])


def is_finite(values: Values, dtype: str) -> bool:
    """Tells whether every value of a floating-point array is finite."""
    return magnitude_bits(values, dtype) < FLOAT_FORMATS[dtype].infinity_bits


def as_float64(values: Values, dtype: str) -> Float64Array:
    """Widens a floating-point array to float64, exactly."""
    # A signalling NaN is no reason to warn: whoever minds asks is_finite.
    with np.errstate(invalid="ignore"):
        return as_native_float(values, dtype).astype(np.float64)


def as_native_float(values: Values, dtype: str) -> Values:
    """Gives a floating-point array in a type numpy calculates with: BF16 becomes float32, the others stay."""
    _require_float(dtype)
    if dtype == "BF16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def from_float64(values: Float64Array, dtype: str) -> Values:
    """Narrows float64 to a floating-point type with one rounding, half to even; what is too large becomes infinity."""
    if dtype == "BF16":
        return _bfloat16_bits(values)
    _require_float(dtype)
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(CARRIERS[dtype])


def _bfloat16_bits(values: Float64Array) -> NDArray[np.uint16]:
    # Rounding to odd in float32 first keeps what lies beyond its last bit, so the second rounding is the only one that
    # counts (Boldo & Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = values.astype(np.float32)
        bits = single.view(np.uint32)
        bits -= (np.abs(single.astype(np.float64)) > np.abs(values)).astype(np.uint32)
        bits |= (single != values).astype(np.uint32)
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = (bits >> np.uint32(16)).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0
    return rounded


def _require_float(dtype: str) -> None:
    if dtype not in FLOAT_FORMATS:
        raise ValueError(f"{dtype} is not a floating-point type; known are {', '.join(FLOAT_FORMATS)}")
