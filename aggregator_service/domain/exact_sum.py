"""The exact integer sum: the same bits in any order, on any split over workers, after any restart.

Each contribution `delta * weight` is rounded once to a fixed-point grid of spacing 2^-shift and the integers are added.
The shift is chosen per tensor from the sealed set alone, so that nothing wraps and enough bits are kept:

- every |delta * weight * 2^shift| is at most 2^51, which the loops' rounding needs, and their sum at most 2^62;
- the shift is rounded down to a multiple of 4, so that a guess made from a part of the updates is nearly always right.

What is lost: the first rule leaves the largest contribution above 2^50, the second one costs one bit more for 2049 to
4096 updates, the rounding down up to three. The largest contribution is therefore above 2^46 and half a grid step per
update is below N * 2^-47 * max(weight_i * m_i) / total weight: a quarter of the contract's bound, which leaves room for
the rounding to the model's own type. A multiple of 8 would cost up to seven bits and break that bound by a factor of 2
(4 for more than 2048 updates).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregator_service.domain.kernels import compiled
from fl_protocol.dtypes import Float64Array

Int64Array = NDArray[np.int64]

MAX_CONTRIBUTION_BITS: Final = 51
MAX_SUM_BITS: Final = 62
SHIFT_STEP: Final = 4
MIN_SHIFT: Final = -1008
MAX_SHIFT: Final = 992
"""weight * 2^shift stays a finite normal float64 for every weight up to 2^29."""

_FLOATS: Final = {np.dtype("<f8"): "F64", np.dtype("<f4"): "F32", np.dtype("<f2"): "F16", np.dtype("<u2"): "BF16"}
_PACKED: Final = "I4"
_SCALE: Final = np.dtype("<f4")
_TOGETHER: Final = 8
"""Updates that are added in one pass: more streams than that slow each other down."""
_TILE_ELEMENTS: Final = 1 << 17
"""1 MiB of sums stays in a core's second-level cache while update after update is added to them."""
_CODES: Final = {np.dtype("i1"): "I8", np.dtype("u1"): _PACKED}


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """The largest and the sum of some contributions' |delta| * weight, exactly, in units of 2^-exponent."""

    largest: int = 0
    total: int = 0
    exponent: int = 0

    def extended(self, contributions: Iterable[tuple[float, float]]) -> "Magnitudes":
        """Takes in further contributions, each told by its largest |delta| and its weight; the order does not matter.

        Raises ValueError for a magnitude or a weight that is not finite.
        """
        largest, total, exponent = self.largest, self.total, self.exponent
        for magnitude, weight in contributions:
            if not math.isfinite(magnitude) or magnitude < 0 or not 0 < weight < math.inf:
                raise ValueError(f"a contribution needs a finite magnitude and a weight above 0: {magnitude}, {weight}")
            numerator, denominator = magnitude.as_integer_ratio()
            weight_numerator, weight_denominator = weight.as_integer_ratio()
            scaled = numerator * weight_numerator
            finer = denominator.bit_length() + weight_denominator.bit_length() - 2
            if finer > exponent:
                largest, total, exponent = largest << finer - exponent, total << finer - exponent, finer
            scaled <<= exponent - finer
            largest, total = max(largest, scaled), total + scaled
        return Magnitudes(largest, total, exponent)

    @property
    def shift(self) -> int:
        """The grid that they choose."""
        if not self.total:
            return 0
        most = MAX_CONTRIBUTION_BITS - _ceil_log2(self.largest)
        exact = min(most, MAX_SUM_BITS - _ceil_log2(self.total)) + self.exponent
        return min(max(exact // SHIFT_STEP * SHIFT_STEP, MIN_SHIFT), MAX_SHIFT)


def shift(contributions: Iterable[tuple[float, float]]) -> int:
    """Chooses a tensor's grid from each update's (largest |delta|, weight); the order does not matter.

    A weight is an integer up to 2^29, such an integer times a clip factor, or an algorithm's own: any finite number
    above 0. Float64 contributions that are all below 2^-946 meet MAX_SHIFT and keep fewer bits. Raises ValueError for a
    magnitude or a weight that is not finite.
    """
    return Magnitudes().extended(contributions).shift


@dataclass(frozen=True, slots=True)
class Quantised:
    """Elements as codes, int8 or two's complement of 4 bits (uint8, the first of two in the lower half of a byte).

    Element i stands for its code times scales[(first_in_row + i) // row_elements]. Where `first_in_byte` is 1 the first
    element has the upper half of the first byte.
    """

    codes: NDArray[np.int8] | NDArray[np.uint8]
    scales: NDArray[np.float32]
    row_elements: int
    first_in_row: int = 0
    first_in_byte: int = 0


@dataclass(frozen=True, slots=True)
class Sparse:
    """Float32 values of some elements; `indices`, uint32, are all different. The other elements are 0."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


Summand = NDArray[Any] | Quantised | Sparse
"""What one update adds: float16, bfloat16 as its bits (uint16), float32 or float64 for each element, or an encoding."""


def fold(accumulator: Int64Array, summand: Summand, *, weight: float, shift: int) -> None:
    """Adds round_half_even(value * weight * 2^shift) to each element of the accumulator, modulo 2^64.

    All values are finite. weight * 2^shift, times the scale where there is one, is a float64: exact for integer weights
    up to 2^29; the product with a value or a code always is. Raises ValueError for arrays of other types or sizes and
    for an index beyond the accumulator.
    """
    fold_all(accumulator, [summand], weights=[weight], shift=shift)


def fold_all(accumulator: Int64Array, summands: Sequence[Summand], *, weights: Sequence[float], shift: int) -> None:
    """Does the same for several updates of one kind in few passes over the accumulator; eight at a time are fastest."""
    if accumulator.dtype != np.int64 or not accumulator.flags.c_contiguous or not accumulator.flags.writeable:
        raise ValueError("an accumulator is a contiguous array of int64")
    kinds = {_kind(one) for one in summands}
    if len(kinds) != 1 or len(weights) != len(summands):
        raise ValueError(f"updates are added together that are of one kind and have a weight each, not {sorted(kinds)}")
    factors = [math.ldexp(weight, shift) for weight in weights]
    kind = kinds.pop()
    if kind == compiled.SPARSE:
        for one, factor in zip(summands, factors, strict=True):
            _fold_sparse(accumulator, one, factor=factor)  # type: ignore[arg-type]
    elif accumulator.size:
        _fold_dense(accumulator, summands, kind=kind, factors=factors)


def prepare() -> None:
    """Compiles what adds up float32, which is otherwise done by the first fold in 0.1 s."""
    compiled.function("F32")


def mean(accumulator: Int64Array, *, total_weight: float, shift: int) -> Float64Array:
    """Turns a sum into the weighted mean; its relative error of at most 2^-52 is far below the grid's."""
    result = accumulator.astype(np.float64)
    np.divide(result, float(total_weight), out=result)
    with np.errstate(under="ignore", over="ignore"):
        # A shift is such that this power is a normal number: the product is what `ldexp` gives, in a third of its time.
        np.multiply(result, math.ldexp(1.0, -shift), out=result)
    return result


def _ceil_log2(value: int) -> int:
    return (value - 1).bit_length()


def _kind(summand: Summand) -> str:
    if isinstance(summand, Sparse):
        return compiled.SPARSE
    dtype = summand.codes.dtype if isinstance(summand, Quantised) else summand.dtype
    kind = (_CODES if isinstance(summand, Quantised) else _FLOATS).get(dtype)
    if kind is None:
        raise ValueError(f"{dtype} is not a type that is added up")
    return kind


def _fold_sparse(accumulator: Int64Array, summand: Sparse, *, factor: float) -> None:
    indices = _checked(summand.indices, num_elements=summand.values.size, dtype=np.dtype("<u4"))
    values = _checked(summand.values, num_elements=indices.size, dtype=np.dtype("<f4"))
    if indices.size:
        if int(indices.max()) >= accumulator.size:
            raise ValueError(f"index {indices.max()} is beyond the last of {accumulator.size} elements")
        addresses = accumulator.ctypes.data, indices.ctypes.data, values.ctypes.data
        compiled.function(compiled.SPARSE)(*addresses, factor, indices.size)


@dataclass(frozen=True, slots=True)
class _Rows:
    """How elements lie in rows and bytes."""

    row_elements: int
    first_in_row: int = 0
    first_in_byte: int = 0


def _fold_dense(accumulator: Int64Array, summands: Sequence[Summand], *, kind: str, factors: Sequence[float]) -> None:
    """Calls the loop with the updates' addresses and with a row of factors for each: one for each row of elements."""
    rows, table = _Rows(accumulator.size), np.array(factors, dtype=np.float64).reshape(-1, 1)
    values = [one.codes if isinstance(one, Quantised) else one for one in summands if not isinstance(one, Sparse)]
    quantised = [one for one in summands if isinstance(one, Quantised)]
    if quantised:
        rows, table = _rows_of(quantised), _table(quantised, factors, num_elements=accumulator.size)
    end = rows.first_in_byte + accumulator.size
    for one in values:
        _checked(one, num_elements=-(-end // 2) if kind == _PACKED else end, dtype=values[0].dtype)
    addresses = np.array([one.ctypes.data for one in values], dtype=np.uint64)
    _call_by_tiles(compiled.function(kind), accumulator, rows, addresses=addresses, table=table)


def _call_by_tiles(
    function: compiled.Function,
    accumulator: Int64Array,
    rows: _Rows,
    *,
    addresses: NDArray[np.uint64],
    table: Float64Array,
) -> None:
    """Calls the loop for each tile with some updates after the others, so that the tile stays in a core's cache."""
    sums, updates, factors, num_rows = accumulator.ctypes.data, addresses.ctypes.data, table.ctypes.data, table.shape[1]
    size = accumulator.size if addresses.size <= _TOGETHER else _TILE_ELEMENTS
    for tile in range(0, accumulator.size, size):
        number, first_in_row = divmod(rows.first_in_row + tile, rows.row_elements)
        begin = rows.first_in_byte + tile
        end = rows.first_in_byte + min(tile + size, accumulator.size)
        for update in range(0, addresses.size, _TOGETHER):
            function(
                sums + tile * accumulator.itemsize,
                updates + update * addresses.itemsize,
                factors + (update * num_rows + number) * table.itemsize,
                min(_TOGETHER, addresses.size - update),
                num_rows,
                rows.row_elements,
                first_in_row,
                begin,
                end,
            )


def _rows_of(summands: Sequence[Quantised]) -> _Rows:
    found = {(one.row_elements, one.first_in_row, one.first_in_byte) for one in summands}
    rows = _Rows(*found.pop())
    is_packed = summands[0].codes.dtype == np.uint8
    if found or not 0 <= rows.first_in_row < rows.row_elements or not 0 <= rows.first_in_byte <= is_packed:
        raise ValueError(f"updates that are added together lie in rows alike, and begin in the first one, not {rows}")
    return rows


def _table(summands: Sequence[Quantised], factors: Sequence[float], *, num_elements: int) -> Float64Array:
    """Gives scale * weight * 2^shift for each update and row."""
    num_rows = (summands[0].first_in_row + num_elements - 1) // summands[0].row_elements + 1
    scales = [_checked(one.scales, num_elements=num_rows, dtype=_SCALE) for one in summands]
    table: Float64Array = np.array(scales, dtype=np.float64)
    table *= np.array(factors).reshape(-1, 1)
    return table


def _checked(values: NDArray[Any], *, num_elements: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    # What is compiled believes what it is told: a wrong number would be memory of somebody else's.
    if values.shape != (num_elements,) or not values.flags.c_contiguous or values.dtype != dtype:
        raise ValueError(f"{num_elements} contiguous {dtype} are to be added, not {values.shape} {values.dtype}")
    return values
