"""The exact sum of encoded updates: codes and sparse values go into the integers without being widened first.

Each element is rounded once to the grid, half to even, like `exact_sum.fold`; nothing is added beside it, so these sums
need no `settle`. A code times its scale is exact in float64 (7 + 24 bits), and so is the scale times an integer weight
up to 2^29; their product is rounded once to float64, by 2^-53 of itself.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregator_service.domain.exact_sum import Int64Array
from fl_protocol.dtypes import Float64Array
from fl_protocol.encodings.quantised import multiply_rows, unpack_int4

Float32Array = NDArray[np.float32]
IndexArray = NDArray[np.integer[Any]]

_TILE_ELEMENTS: Final = 1 << 16


def fold_int8(
    accumulator: Int64Array,
    codes: NDArray[np.int8],
    scales: Float32Array,
    *,
    row_elements: int,
    first_in_row: int,
    weight: float,
    shift: int,
) -> None:
    """Adds round_half_even(code * (scale * weight * 2^shift)) to each element.

    `scales` are those of the rows in which the codes lie; codes[0] is element `first_in_row` of the first of them.
    """
    factors = scales.astype(np.float64) * math.ldexp(weight, shift)
    for begin in range(0, codes.size, _TILE_ELEMENTS):
        tile = codes[begin : begin + _TILE_ELEMENTS].astype(np.float64)
        row, first = divmod(first_in_row + begin, row_elements)
        multiply_rows(tile, factors[row:], row_elements=row_elements, first_in_row=first)
        _add_rounded(accumulator[begin : begin + tile.size], tile)


def fold_int4(
    accumulator: Int64Array,
    packed: NDArray[np.uint8],
    scales: Float32Array,
    *,
    row_elements: int,
    first_in_row: int,
    skips_one: bool,
    weight: float,
    shift: int,
) -> None:
    """Adds codes of 4 bits as `fold_int8` does; where `skips_one` the first code is in the high half of its byte."""
    first = int(skips_one)
    codes = unpack_int4(packed)[first : first + accumulator.size]
    fold_int8(
        accumulator,
        codes,
        scales,
        row_elements=row_elements,
        first_in_row=first_in_row,
        weight=weight,
        shift=shift,
    )


def fold_sparse(
    accumulator: Int64Array, indices: IndexArray, values: Float32Array, *, weight: float, shift: int
) -> None:
    """Adds round_half_even(value * weight * 2^shift) where the indices say, which increase strictly."""
    scaled = values.astype(np.float64)
    np.multiply(scaled, math.ldexp(weight, shift), out=scaled)
    np.rint(scaled, out=scaled)
    accumulator[indices] += scaled.astype(np.int64)


def _add_rounded(accumulator: Int64Array, scaled: Float64Array) -> None:
    np.rint(scaled, out=scaled)
    np.add(accumulator, scaled.astype(np.int64), out=accumulator)
