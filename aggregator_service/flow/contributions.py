"""The sealed updates as the fold reads them, in canonical order: each with its layout, weight and clip factor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregator_service.domain.encoded_runs import DenseRun, Run, widen
from aggregator_service.flow.encoded_windows import Encoded, companions_of, forms_of, read_runs
from aggregator_service.flow.windows import Layout, RangeReader, Segment, layout_of, nothing_of, read_header, windows
from fl_protocol.dtypes import Values
from fl_protocol.encodings.forms import Quantised
from fl_protocol.specs.encodings import Encoding
from fl_protocol.tensors import Header
from fl_protocol.updates import check_update_structure, update_seed

_BLOCK_NUM_BYTES: Final = 32 << 20
_MIN_BLOCK_ELEMENTS: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class SealedUpdate:
    """One update of a sealed round: its weight, each tensor's largest |delta|, and how to read its bytes.

    `delta_weight` replaces the weight in a mean's floating-point tensors, where it cannot be an integer. One that is
    `skipped` has no tensors to read: it counts as zero, with its weight.
    """

    update_id: str
    digest: str
    weight: int
    max_abs: Mapping[str, float]
    read: RangeReader
    delta_weight: float | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Contribution:
    """A sealed update whose header was read; `factor` is what clipping multiplies its floating-point deltas by.

    `encoded` is None where every tensor travels whole and in the model's own type.
    """

    update: SealedUpdate
    layout: Layout
    factor: float = 1.0
    encoded: Encoded | None = None

    def runs(self, window: Sequence[Segment]) -> Iterator[tuple[Segment, Run]]:
        """Yields the segments of a window that the update holds, each with its elements as they are encoded."""
        return read_runs(self.update.read, window, layout=self.layout, encoded=self.encoded)

    def magnitude(self, tensor: str) -> float:
        """Gives the largest |delta| of a floating-point tensor, clipped."""
        return self.update.max_abs[tensor] * self.factor


@dataclass(frozen=True, slots=True)
class Block:
    """A window of several updates at once, a row an update.

    `floats` [n, elements] has the window's floating-point values at their segments' offsets, as float32 or float64 and
    without negative zeros; where a tensor does not travel it means nothing. `integers` has, by a segment's offset, the
    int64 values of the updates that hold it.
    """

    floats: NDArray[Any]
    integers: Mapping[int, Sequence[NDArray[np.int64]]]


def open_contributions(
    updates: Sequence[SealedUpdate], model: Header, *, holds: Header, encoding: Encoding
) -> list[Contribution]:
    """Reads the headers of the updates and puts them into the order of their digests.

    `holds` is what each has, and `encoding` how it has it.
    """
    # Most updates come from the same kind of client: equal layouts are kept once, whole headers not at all.
    known: dict[bytes, Layout] = {}
    forms, opened = forms_of(model, encoding), []
    for update in sorted(updates, key=lambda update: update.digest):
        if update.skipped:
            opened.append(Contribution(update, _shared(known, nothing_of(model))))
            continue
        header = read_header(update.read)
        check_update_structure(header, holds, encoding)
        layout = _shared(known, layout_of(header, model))
        encoded = None
        if forms is not None:
            companions = _shared(known, companions_of(header, model))
            encoded = Encoded(forms, companions, update_seed(header, encoding))
        opened.append(Contribution(update, layout, encoded=encoded))
    return opened


def _shared(known: dict[bytes, Layout], layout: Layout) -> Layout:
    return known.setdefault(layout.tobytes(), layout)


def row_type(contributions: Sequence[Contribution], model: Header) -> np.dtype[Any]:
    """Gives the type that holds every floating-point delta, clipped, without a rounding."""
    is_exact = all(one.factor == 1.0 and not _is_quantised(one) for one in contributions)
    return np.dtype(np.float32 if is_exact and all(spec.dtype != "F64" for spec in model.tensors) else np.float64)


def _is_quantised(one: Contribution) -> bool:
    return one.encoded is not None and any(isinstance(form, Quantised) for form in one.encoded.forms)


def blocks(contributions: Sequence[Contribution], model: Header) -> Iterator[tuple[Sequence[Segment], Block]]:
    """Yields the whole model in windows so small that all the contributions' rows of one take at most 32 MiB.

    A block is valid until the next one is asked for.
    """
    dtype = row_type(contributions, model)
    widest = dtype.itemsize if all(spec.is_float for spec in model.tensors) else 8
    num_elements = max(_BLOCK_NUM_BYTES // (len(contributions) * widest), _MIN_BLOCK_ELEMENTS)
    rows: NDArray[Any] = np.empty((0, 0), dtype=dtype)
    for window in windows(model, num_elements):
        size = window[-1].offset + window[-1].num_elements
        if rows.shape[1] < size:
            rows = np.empty((len(contributions), size), dtype=dtype)
        yield window, _read_block(contributions, window, floats=rows[:, :size])


def _read_block(contributions: Sequence[Contribution], window: Sequence[Segment], *, floats: Values) -> Block:
    integers: dict[int, list[NDArray[np.int64]]] = {}
    for row, one in zip(floats, contributions, strict=True):
        for segment, run in one.runs(window):
            if isinstance(run, DenseRun) and not segment.spec.is_float:
                integers.setdefault(segment.offset, []).append(run.values.astype(np.int64))
                continue
            target = row[segment.offset : segment.offset + segment.num_elements]
            widen(run, target)
            if one.factor != 1.0:
                np.multiply(target, one.factor, out=target)
            np.add(target, 0.0, out=target)
    return Block(floats, integers)
