"""Reads one window of an encoded update: as codes and scales, or as the few elements that are there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregator_service.domain.encoded_runs import DenseRun, Int4Run, Int8Run, Run, SparseRun
from aggregator_service.flow.windows import Layout, RangeReader, Segment, read_window
from fl_protocol.encodings.forms import INDICES_PREFIX, SCALES_PREFIX, Dense, Form, Quantised, Sparse, form_of
from fl_protocol.encodings.random_mask import mask_indices, parts_of_window
from fl_protocol.specs.encodings import DenseEncoding, Encoding
from fl_protocol.tensors import Header

_PAGE_INDICES: Final = 4096


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is known of an encoded update beside where its tensors start: all by the tensor's number in the model.

    `companions` is where the tensors begin that hold scales or indices. `places` remembers up to which element a
    tensor's indices were read, and how many there were, because windows are read in order.
    """

    forms: Sequence[Form]
    companions: Layout
    seed: bytes | None
    places: dict[int, tuple[int, int]] = field(default_factory=dict)


def forms_of(model: Header, encoding: Encoding) -> list[Form] | None:
    """Gives the form of each tensor of the model; None where all travel whole in their own types."""
    if isinstance(encoding, DenseEncoding) and encoding.dtype == "model":
        return None
    return [form_of(spec, encoding) for spec in model.tensors]


def companions_of(header: Header, model: Header) -> Layout:
    """Gives where the scales or the indices of each tensor of the model begin in an update; -1 where it has none."""
    begins = np.full(len(model.tensors), -1, dtype=np.int64)
    for tensor, spec in enumerate(model.tensors):
        for prefix in (SCALES_PREFIX, INDICES_PREFIX):
            held = header.by_name.get(prefix + spec.name)
            if held is not None:
                begins[tensor] = header.data_start + held.begin
    return begins


def read_runs(
    read: RangeReader, window: Sequence[Segment], *, layout: Layout, encoded: Encoded | None
) -> Iterator[tuple[Segment, Run]]:
    """Yields the segments of a window that the update holds, each with its elements as they are encoded."""
    if encoded is None:
        for segment, values in read_window(read, window, layout=layout):
            yield segment, DenseRun(values, segment.spec.dtype)
        return
    whole = {segment.offset: segment for segment in window if isinstance(encoded.forms[segment.tensor], Dense)}
    as_sent = [_as_sent(segment, encoded.forms[segment.tensor]) for segment in whole.values()]
    for sent, values in read_window(read, as_sent, layout=layout):
        yield whole[sent.offset], DenseRun(values, sent.spec.dtype)
    for segment in window:
        begin = int(layout[segment.tensor])
        if segment.offset in whole or begin < 0:
            continue
        form = encoded.forms[segment.tensor]
        if isinstance(form, Quantised):
            yield (
                segment,
                _read_quantised(read, segment, form, begin=begin, scales=int(encoded.companions[segment.tensor])),
            )
        elif isinstance(form, Sparse):
            yield segment, _read_sparse(read, segment, form, begin=begin, encoded=encoded)


def _as_sent(segment: Segment, form: Form) -> Segment:
    dtype = form.dtype if isinstance(form, Dense) else segment.spec.dtype
    return segment if dtype == segment.spec.dtype else replace(segment, spec=replace(segment.spec, dtype=dtype))


def _read_quantised(read: RangeReader, segment: Segment, form: Quantised, *, begin: int, scales: int) -> Run:
    row, first_in_row = divmod(segment.first, form.row_elements)
    end = segment.first + segment.num_elements
    last_row = -(-end // form.row_elements)
    factors = _array(read, scales + 4 * row, count=last_row - row, dtype="<f4")
    if form.bits == 8:
        codes = _array(read, begin + segment.first, count=segment.num_elements, dtype="i1")
        return Int8Run(codes, factors, form.row_elements, first_in_row)
    first_byte, skips_one = divmod(segment.first, 2)
    packed = _array(read, begin + first_byte, count=-(-end // 2) - first_byte, dtype="u1")
    return Int4Run(packed, factors, form.row_elements, first_in_row, segment.num_elements, bool(skips_one))


def _read_sparse(read: RangeReader, segment: Segment, form: Sparse, *, begin: int, encoded: Encoded) -> SparseRun:
    if form.has_indices:
        at, indices = _read_indices(read, segment, form, encoded=encoded)
    else:
        at, indices = _draw_indices(segment, form, seed=encoded.seed)
    values = _array(read, begin + 4 * at, count=indices.size, dtype="<f4")
    return SparseRun(indices - segment.first, values)


def _draw_indices(segment: Segment, form: Sparse, *, seed: bytes | None) -> tuple[int, NDArray[np.int64]]:
    if seed is None:
        raise ValueError("an update with a random mask was opened without its seed")
    begin, end = segment.first, segment.first + segment.num_elements
    first, last = parts_of_window(form.num_elements, form.count, begin=begin, end=end)
    indices = mask_indices(
        seed, segment.spec.name, num_elements=form.num_elements, count=form.count, first=first, last=last
    )
    # The first and the last part may have drawn an element of the windows beside this one.
    low, high = np.searchsorted(indices, (begin, end))
    return first + int(low), indices[low:high]


def _read_indices(
    read: RangeReader, segment: Segment, form: Sparse, *, encoded: Encoded
) -> tuple[int, NDArray[np.int64]]:
    """Gives the indices within a segment, and how many come before them."""
    begin, end, start = segment.first, segment.first + segment.num_elements, int(encoded.companions[segment.tensor])
    known = encoded.places.get(segment.tensor, (0, 0))
    at = known[1] if known[0] == begin else _search(read, start, begin, count=form.count)
    # Twice what a window has on average, so that one read is nearly always enough.
    page = max(_PAGE_INDICES, 2 * form.count * segment.num_elements // form.num_elements)
    pages, done = [], at
    while done < form.count:
        taken = _array(read, start + 4 * done, count=min(page, form.count - done), dtype="<u4")
        within = int(np.searchsorted(taken, end))
        pages.append(taken[:within])
        done += within
        if within < taken.size:
            break
    encoded.places[segment.tensor] = (end, done)
    return at, np.concatenate(pages).astype(np.int64) if pages else np.empty(0, dtype=np.int64)


def _search(read: RangeReader, start: int, element: int, *, count: int) -> int:
    """Gives how many indices are below an element, by bisection over what is stored."""
    low, high = 0, count if element else 0
    while high - low > _PAGE_INDICES:
        middle = (low + high) // 2
        if int(_array(read, start + 4 * middle, count=1, dtype="<u4")[0]) < element:
            low = middle + 1
        else:
            high = middle
    page = _array(read, start + 4 * low, count=high - low, dtype="<u4")
    return low + int(np.searchsorted(page, element))


def _array(read: RangeReader, begin: int, *, count: int, dtype: str) -> NDArray[Any]:
    size = count * np.dtype(dtype).itemsize
    data = memoryview(read(begin, begin + size)) if size else memoryview(b"")
    if data.nbytes != size:
        raise EOFError(f"{data.nbytes} of the bytes {begin}..{begin + size} of a stored blob could be read")
    return np.frombuffer(data, dtype=dtype)
