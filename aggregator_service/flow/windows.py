"""Cuts a model into windows of bounded size, and reads one window of any blob that holds the same tensors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fl_protocol.dtypes import CARRIERS, Values
from fl_protocol.tensors import LENGTH_BYTES, Header, TensorSpec, header_length, malformed, parse_header

WINDOW_ELEMENTS: Final = 1 << 19
_WINDOWS_OF_SUMS: Final = 8
_FEWEST_SUMS: Final = 1 << 17
_MAX_HEADER_BYTES: Final = 1 << 24
_ABSENT: Final = -1

RangeReader = Callable[[int, int], bytes | bytearray | memoryview]
"""Reads the bytes [begin, end) of one blob."""

Layout = NDArray[np.int64]
"""Where each tensor of the model starts in a blob, in bytes from its beginning, in the model's order; -1: left out."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of elements of one tensor: `tensor` counts in the model's order, `offset` elements into the window."""

    tensor: int
    spec: TensorSpec
    first: int
    num_elements: int
    offset: int

    def as_state(self, num_slots: int) -> "Segment":
        """The same elements in a blob that keeps so many float64 for each of them."""
        return replace(
            self,
            spec=replace(self.spec, dtype="F64"),
            first=self.first * num_slots,
            num_elements=self.num_elements * num_slots,
        )


def windows(model: Header, num_elements: int | None = None) -> Iterator[list[Segment]]:
    """Yields the model in order in windows of so many elements: small tensors share one, large tensors span several.

    They have WINDOW_ELEMENTS where nobody asks for fewer.
    """
    size = WINDOW_ELEMENTS if num_elements is None else min(num_elements, WINDOW_ELEMENTS)
    window: list[Segment] = []
    filled = 0
    for tensor, spec in enumerate(model.tensors):
        first = 0
        while first < spec.num_elements:
            taken = min(size - filled, spec.num_elements - first)
            window.append(Segment(tensor=tensor, spec=spec, first=first, num_elements=taken, offset=filled))
            first, filled = first + taken, filled + taken
            if filled == size:
                yield window
                window, filled = [], 0
    if window:
        yield window


def window_of_sums(num_elements: int) -> int:
    """Gives how many elements of a vector of sums, of 4 or 8 bytes each, are in memory at once.

    It is an eighth of them, as far as that is between 1 << 17, since smaller ones cost more than their bytes, and
    WINDOW_ELEMENTS; and a power of 2, so that no window ends within a chunk of what is summed.
    """
    eighth = 1 << max(num_elements // _WINDOWS_OF_SUMS - 1, 0).bit_length()
    return min(max(eighth, _FEWEST_SUMS), WINDOW_ELEMENTS)


def read_header(read: RangeReader) -> Header:
    """Reads the header of a stored safetensors blob; raises ProblemError (malformed-update) if it is none."""
    prefix = bytes(read(0, LENGTH_BYTES))
    if len(prefix) != LENGTH_BYTES:
        raise malformed(f"a stored blob has {len(prefix)} bytes; a safetensors file has more")
    end = LENGTH_BYTES + header_length(prefix, _MAX_HEADER_BYTES)
    return parse_header(bytes(read(LENGTH_BYTES, end)))


def layout_of(header: Header, model: Header) -> Layout:
    """Gives where each tensor of the model starts in a blob with another header."""
    begins = nothing_of(model)
    for tensor, spec in enumerate(model.tensors):
        held = header.by_name.get(spec.name)
        if held is not None:
            begins[tensor] = header.data_start + held.begin
    return begins


def nothing_of(model: Header) -> Layout:
    """Gives the layout of a blob that has none of the model's tensors."""
    return np.full(len(model.tensors), _ABSENT, dtype=np.int64)


def holds(layout: Layout, tensor: int) -> bool:
    """Tells whether a blob has a tensor of the model."""
    return bool(layout[tensor] != _ABSENT)


def read_window(read: RangeReader, window: Sequence[Segment], *, layout: Layout) -> Iterator[tuple[Segment, Values]]:
    """Yields the segments of a window that the blob holds, with their values; neighbours are read in one go."""
    for group in _neighbours(layout, window):
        begin, end = group[0][1], group[-1][1] + _num_bytes(group[-1][0])
        data = memoryview(read(begin, end))
        if data.nbytes != end - begin:
            raise EOFError(f"{data.nbytes} of the bytes {begin}..{end} of a stored blob could be read")
        for segment, start in group:
            values: NDArray[Any] = np.frombuffer(
                data, dtype=CARRIERS[segment.spec.dtype], count=segment.num_elements, offset=start - begin
            )
            yield segment, values


def _neighbours(layout: Layout, window: Sequence[Segment]) -> Iterator[list[tuple[Segment, int]]]:
    group: list[tuple[Segment, int]] = []
    for segment in window:
        begin = int(layout[segment.tensor])
        if begin == _ABSENT:
            continue
        start = begin + segment.first * CARRIERS[segment.spec.dtype].itemsize
        if group and start != group[-1][1] + _num_bytes(group[-1][0]):
            yield group
            group = []
        group.append((segment, start))
    if group:
        yield group


def _num_bytes(segment: Segment) -> int:
    return segment.num_elements * CARRIERS[segment.spec.dtype].itemsize
