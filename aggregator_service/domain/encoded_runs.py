"""Elements of one tensor in a row, as an update's encoding has them: added up, measured or widened from these bytes."""

from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from aggregator_service.domain.exact_sum import Quantised, Sparse, Summand
from fl_protocol.dtypes import Float64Array, Values, as_native_float
from fl_protocol.encodings.quantised import dequantise, unpack_int4

Float32Array = NDArray[np.float32]
IndexArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class DenseRun:
    """Every element as it is, integers included; BF16 as its bits."""

    values: Values
    dtype: str


@dataclass(frozen=True, slots=True)
class Int8Run:
    """Codes and the scales of the rows in which they lie; the first code is element `first_in_row` of its row."""

    codes: NDArray[np.int8]
    scales: Float32Array
    row_elements: int
    first_in_row: int


@dataclass(frozen=True, slots=True)
class Int4Run:
    """`num_codes` codes, two in a byte, from the low half of the first byte on, or its high half where `skips_one`."""

    packed: NDArray[np.uint8]
    scales: Float32Array
    row_elements: int
    first_in_row: int
    num_codes: int
    skips_one: bool

    @property
    def codes(self) -> NDArray[np.int8]:
        """The codes, unpacked."""
        first = int(self.skips_one)
        return unpack_int4(self.packed)[first : first + self.num_codes]


@dataclass(frozen=True, slots=True)
class SparseRun:
    """The elements that are there, by their indices within the run, which increase strictly; the others are zero."""

    indices: IndexArray
    values: Float32Array


Run = DenseRun | Int8Run | Int4Run | SparseRun


def summand(run: Run) -> Summand:
    """Gives what the exact sum adds for a run of floating-point elements."""
    match run:
        case DenseRun():
            return run.values
        case Int8Run():
            return Quantised(run.codes, run.scales, run.row_elements, run.first_in_row)
        case Int4Run():
            return Quantised(run.packed, run.scales, run.row_elements, run.first_in_row, int(run.skips_one))
        case SparseRun():
            return Sparse(run.indices.astype(np.uint32, copy=False), run.values)
        case _:
            assert_never(run)


def present(run: Run) -> tuple[Values, str]:
    """Gives the elements that are not zero for certain, in order, with their type: what a norm is made of."""
    match run:
        case DenseRun():
            return run.values, run.dtype
        case Int8Run() | Int4Run():
            return _dequantised(run), "F64"
        case SparseRun():
            return run.values, "F32"
        case _:
            assert_never(run)


def widen(run: Run, target: NDArray[Any]) -> None:
    """Writes every element into an array whose type holds it exactly."""
    match run:
        case DenseRun():
            np.copyto(target, as_native_float(run.values, run.dtype))
        case Int8Run() | Int4Run():
            np.copyto(target, _dequantised(run))
        case SparseRun():
            target.fill(0)
            target[run.indices] = run.values
        case _:
            assert_never(run)


def _dequantised(run: Int8Run | Int4Run) -> Float64Array:
    return dequantise(run.codes, run.scales, row_elements=run.row_elements, first_in_row=run.first_in_row)
