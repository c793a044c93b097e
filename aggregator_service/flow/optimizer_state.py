"""The server optimizer's state as a stored blob: what it kept of each floating-point tensor after a model version.

For each floating-point tensor that travels there is one F64 tensor of its name. An optimizer that keeps several arrays
keeps them element by element, as a last axis in the order of its slots: the blob is then read and written front to back
in the model's own windows, and no name can collide with one of the model's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from aggregator_service.domain.server_optimizers import choice
from aggregator_service.domain.server_optimizers.states import States
from aggregator_service.flow.read_ahead import ReadAhead
from aggregator_service.flow.windows import Layout, RangeReader, Segment, layout_of, read_header, read_window
from fl_protocol.dtypes import Float64Array
from fl_protocol.specs.server_optimizers import AnyServerOptimizer
from fl_protocol.tensors import Header, render_header

_KIND = "kind"


class OptimizerStateError(ValueError):
    """The state stored with a model version is not one that the run's server optimizer could have left there."""


class _Tensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name!r} ({self.dtype} of shape {list(self.shape)})"


@dataclass(frozen=True, slots=True)
class StoredState:
    """A checked state and how to read its bytes."""

    read: RangeReader
    layout: Layout
    num_slots: int


def open_state(
    read: RangeReader | None, model: Header, *, moving: Header, optimizer: AnyServerOptimizer
) -> StoredState | None:
    """Checks a stored state of the model's `moving` part; None before the first round.

    Raises OptimizerStateError naming what is wrong.
    """
    if read is None:
        return None
    header = read_header(read)
    kind = header.metadata.get(_KIND)
    if kind != optimizer.kind:
        raise OptimizerStateError(
            f"the stored optimizer state does not belong to {optimizer.kind}: it is of kind {kind}"
        )
    found = [_Tensor(held.name, held.dtype, held.shape) for held in header.tensors]
    for held, wanted in zip_longest(found, _tensors(moving, optimizer)):
        if held != wanted:
            raise OptimizerStateError(
                f"the stored optimizer state does not belong to this model: it holds {held or 'nothing'} where"
                f" {optimizer.kind} keeps {wanted or 'nothing'}"
            )
    ahead = ReadAhead(read, num_bytes=header.num_bytes)
    return StoredState(ahead, layout_of(header, model), len(choice.slots(optimizer)))


def state_header(moving: Header, optimizer: AnyServerOptimizer) -> bytes:
    """Renders the head of the state's blob; no bytes for an optimizer without memory."""
    return render_header(_tensors(moving, optimizer), {_KIND: optimizer.kind}) if choice.slots(optimizer) else b""


def read_states(state: StoredState, window: Sequence[Segment]) -> Iterator[tuple[int, Float64Array]]:
    """Yields, for each floating-point segment of a window, its offset and its states: one row an element."""
    kept = [segment.as_state(state.num_slots) for segment in window if segment.spec.is_float]
    for segment, values in read_window(state.read, kept, layout=state.layout):
        yield segment.offset, values.reshape(-1, state.num_slots)


def unpack(rows: Float64Array) -> States:
    """Takes the slots of some elements apart."""
    return tuple(np.ascontiguousarray(rows[:, slot]) for slot in range(rows.shape[1]))


def pack(states: States) -> bytes:
    """Puts the slots of some elements together as they are stored; no bytes for no slots."""
    return np.stack(states, axis=-1).astype("<f8", copy=False).tobytes() if states else b""


def _tensors(moving: Header, optimizer: AnyServerOptimizer) -> list[_Tensor]:
    num_slots = len(choice.slots(optimizer))
    if not num_slots:
        return []
    # Flat where there is a further axis: the model's own shape may have as many axes as a tensor may have.
    return [
        _Tensor(spec.name, "F64", spec.shape if num_slots == 1 else (spec.num_elements, num_slots))
        for spec in moving.tensors
        if spec.is_float
    ]
