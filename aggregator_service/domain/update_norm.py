"""The L2 norm of an update, the same number however its bytes are cut, and the factor that clips it.

Squares are added in float64 over blocks of a fixed size that start at multiples of it within each tensor, and the
blocks' sums are added exactly: neither the network's pieces nor the order of the tensors changes a bit.
"""

import math
from typing import Final

import numpy as np

from fl_protocol.dtypes import Values, as_native_float

BLOCK_ELEMENTS: Final = 1 << 14
_FACTOR_BITS: Final = 24


class UpdateNorm:
    """Measures an update that comes in pieces: each tensor's elements in order, one tensor after the other."""

    def __init__(self) -> None:
        self._block = np.empty(BLOCK_ELEMENTS)
        self._filled = 0
        self._tensor: str | None = None
        self._sums: list[float] = []

    def add(self, tensor: str, values: Values, *, dtype: str) -> None:
        """Takes the next elements of a floating-point tensor, all finite; another tensor's ends the last one."""
        if tensor != self._tensor:
            self._end_block()
            self._tensor = tensor
        native = as_native_float(values, dtype)
        begin = 0
        while begin < native.size:
            taken = min(BLOCK_ELEMENTS - self._filled, native.size - begin)
            self._block[self._filled : self._filled + taken] = native[begin : begin + taken]
            self._filled, begin = self._filled + taken, begin + taken
            if self._filled == BLOCK_ELEMENTS:
                self._end_block()

    def result(self) -> float:
        """Gives the norm of everything that was added."""
        self._end_block()
        return math.sqrt(math.fsum(self._sums))

    def _end_block(self) -> None:
        values = self._block[: self._filled]
        np.multiply(values, values, out=values)
        self._sums.append(float(np.add.reduce(values)))
        self._filled = 0


def clip_factor(norm: float, bound: float) -> float:
    """Gives the factor in (0, 1] that brings a norm down to a bound, rounded down to 24 bits.

    With 24 bits its products with a float32, and with a weight of up to 29 bits, are exact in float64.
    """
    if norm <= bound:
        return 1.0
    mantissa, exponent = math.frexp(bound / norm)
    numerator = math.floor(mantissa * 2**_FACTOR_BITS)
    factor = math.ldexp(numerator, exponent - _FACTOR_BITS)
    # The quotient itself was rounded, perhaps up.
    return factor if factor * norm <= bound else math.ldexp(numerator - 1, exponent - _FACTOR_BITS)
