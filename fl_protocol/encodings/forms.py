"""What each tensor of an update is on the wire: its form follows from the model and the run's encoding alone.

Beside a tensor NAME of the model an encoded update may hold companions called `scales:NAME` or `indices:NAME`.
"""

import math
from dataclasses import dataclass, replace
from typing import Final, assert_never

from fl_protocol.dtypes import CARRIERS
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.specs.encodings import (
    DenseEncoding,
    Encoding,
    Int4Encoding,
    Int8Encoding,
    RandomMaskEncoding,
    SparseEncoding,
    TopKEncoding,
)
from fl_protocol.tensors import MAX_NAME_LENGTH, Header, TensorSpec

SCALES_PREFIX: Final = "scales:"
INDICES_PREFIX: Final = "indices:"
CONTROL_PREFIX: Final = "control:"
"""What a control variate's tensor is called: this and the name of the model's tensor that it belongs to."""

RESERVED_PREFIXES: Final = (SCALES_PREFIX, INDICES_PREFIX, CONTROL_PREFIX)

MIN_ROW_ELEMENTS: Final = 16
"""Rows shorter than this share one scale, which would cost more than it brings."""

MAX_SPARSE_ELEMENTS: Final = (1 << 32) - 1
_MOST_CODE: Final = {8: 127, 4: 7}


@dataclass(frozen=True, slots=True)
class Dense:
    """Every element, as a floating-point number of one type."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Quantised:
    """Every element as a code of 8 or 4 bits; `row_elements` elements in a row have one scale."""

    bits: int
    num_elements: int
    row_elements: int

    @property
    def num_rows(self) -> int:
        return -(-self.num_elements // self.row_elements) if self.num_elements else 0

    @property
    def most(self) -> int:
        """The largest magnitude of a code."""
        return _MOST_CODE[self.bits]


@dataclass(frozen=True, slots=True)
class Sparse:
    """Some elements as float32, with their indices, or drawn by the update's seed."""

    num_elements: int
    count: int
    has_indices: bool


Form = Dense | Quantised | Sparse

_DENSE_TYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def form_of(spec: TensorSpec, encoding: Encoding) -> Form:
    """Gives how a tensor of an update travels; integer tensors and control variates always travel whole."""
    if not spec.is_float or spec.name.startswith(CONTROL_PREFIX):
        return Dense(spec.dtype)
    match encoding:
        case DenseEncoding():
            return Dense(_DENSE_TYPES.get(encoding.dtype, spec.dtype))
        case Int8Encoding():
            return Quantised(8, spec.num_elements, _row_elements(spec))
        case Int4Encoding():
            return Quantised(4, spec.num_elements, _row_elements(spec))
        case TopKEncoding() | RandomMaskEncoding():
            has_indices = isinstance(encoding, TopKEncoding)
            return Sparse(spec.num_elements, _share(spec.num_elements, encoding), has_indices)
        case _:
            assert_never(encoding)


def _row_elements(spec: TensorSpec) -> int:
    """Gives how many elements share a scale: those of one entry of the first dimension, or all of a small tensor's."""
    row = math.prod(spec.shape[1:])
    return row if len(spec.shape) > 1 and row >= MIN_ROW_ELEMENTS else max(spec.num_elements, 1)


def _share(num_elements: int, encoding: SparseEncoding) -> int:
    if encoding.count is not None:
        return min(encoding.count, num_elements)
    return min(max(int(num_elements * (encoding.fraction or 0.0)), 1), num_elements)


def tensors_of(spec: TensorSpec, encoding: Encoding) -> list[tuple[str, str, tuple[int, ...]]]:
    """Lists what stands for a tensor on the wire (name, type, shape), in the order in which it is best written."""
    form = form_of(spec, encoding)
    match form:
        case Dense():
            return [(spec.name, form.dtype, spec.shape)]
        case Quantised():
            scales = (SCALES_PREFIX + spec.name, "F32", (form.num_rows,))
            packed = (spec.name, "U8", (-(-form.num_elements // 2),))
            return [scales, (spec.name, "I8", spec.shape) if form.bits == 8 else packed]
        case Sparse():
            values = (spec.name, "F32", (form.count,))
            return [(INDICES_PREFIX + spec.name, "U32", (form.count,)), values] if form.has_indices else [values]
        case _:
            assert_never(form)


def wire_layout(layout: Header, encoding: Encoding) -> Header:
    """Gives the tensors that an encoded update holds, in a header that the checks of updates take."""
    if isinstance(encoding, DenseEncoding) and encoding.dtype == "model":
        return layout
    tensors: list[TensorSpec] = []
    end = 0
    for spec in layout.tensors:
        for name, dtype, shape in tensors_of(spec, encoding):
            begin, end = end, end + CARRIERS[dtype].itemsize * math.prod(shape)
            tensors.append(TensorSpec(name, dtype, shape, begin, end))
    # A companion has its tensor's entry over again, with a prefix.
    data_start = 2 * layout.data_start + 32 * len(layout.tensors)
    return replace(layout, tensors=tuple(tensors), data_start=data_start, num_bytes=data_start + end)


def check_encodable(layout: Header, encoding: Encoding) -> None:
    """Raises ProblemError (structure-mismatch) naming the tensor whose name or size an encoding has no room for."""
    if isinstance(encoding, DenseEncoding):
        return
    for spec in layout.tensors:
        prefix = next((one for one in RESERVED_PREFIXES if spec.name.startswith(one)), None)
        if prefix is not None:
            raise _mismatch(
                f"tensor {spec.name!r} begins with {prefix!r}, which encoding.kind {encoding.kind!r} uses; rename it"
            )
        longest = MAX_NAME_LENGTH - len(INDICES_PREFIX)
        if len(spec.name) > longest:
            raise _mismatch(
                f"tensor {spec.name[:64]!r}... has a name of {len(spec.name)} characters; with the prefixes of "
                f"encoding.kind {encoding.kind!r} at most {longest} may travel"
            )
        if isinstance(encoding, SparseEncoding) and spec.is_float and spec.num_elements > MAX_SPARSE_ELEMENTS:
            raise _mismatch(
                f"tensor {spec.name!r} has {spec.num_elements} elements; encoding.kind {encoding.kind!r} counts them "
                f"in 32 bits, up to {MAX_SPARSE_ELEMENTS}"
            )


def _mismatch(detail: str) -> ProblemError:
    return ProblemError(ProblemType.STRUCTURE_MISMATCH, detail)
