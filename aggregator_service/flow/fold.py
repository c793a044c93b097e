"""Folds sealed updates into the next model, window by window: memory does not grow with the model or the updates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from aggregator_service.domain import exact_sum, integer_mean
from aggregator_service.domain.exact_sum import Int64Array
from aggregator_service.domain.integer_mean import IntegerArray
from aggregator_service.domain.server_optimizers import choice
from aggregator_service.domain.server_optimizers.states import States
from aggregator_service.flow.optimizer_state import StoredState, open_state, pack, read_states, state_header, unpack
from aggregator_service.flow.windows import (
    WINDOW_ELEMENTS,
    Layout,
    RangeReader,
    Segment,
    layout_of,
    read_header,
    read_window,
    windows,
)
from fl_protocol.dtypes import Float64Array, Values, as_float64, as_native_float, from_float64, is_finite
from fl_protocol.runs import RunSpec
from fl_protocol.tensors import Header, TensorSpec, render_header
from fl_protocol.updates import check_update_structure, travelling_part

__all__ = ["ModelOverflowError", "RangeReader", "SealedUpdate", "aggregate"]

_TILE_ELEMENTS: Final = 1 << 17

Writer = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class SealedUpdate:
    """One update of a sealed round: its weight, each tensor's largest |delta|, and how to read its bytes.

    `factor` replaces the weight for floating-point tensors, where an algorithm asks for a weight that is no integer.
    """

    update_id: str
    digest: str
    weight: int
    max_abs: Mapping[str, float]
    read: RangeReader
    factor: float | None = None

    @property
    def float_weight(self) -> float:
        return self.weight if self.factor is None else self.factor


class ModelOverflowError(ArithmeticError):
    """The next model has a value that its own type cannot hold; `tensor` names where."""

    def __init__(self, tensor: str, *, element: int, dtype: str) -> None:
        super().__init__(f"tensor {tensor!r} would not be finite at element {element} in {dtype}; lower learning_rate")
        self.tensor = tensor
        self.element = element


@dataclass(frozen=True, slots=True)
class _Blob:
    """A blob that holds the model's tensors, or some of them."""

    read: RangeReader
    layout: Layout


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known of a whole round before its first window."""

    spec: RunSpec
    round_number: int
    base: _Blob
    moving: Mapping[str, TensorSpec]
    updates: Sequence[SealedUpdate]
    layouts: Sequence[Layout]
    state: StoredState | None
    shifts: Sequence[int]
    divisor: float
    write_model: Writer
    write_state: Writer


@dataclass(slots=True)
class _Sums:
    """The sums of one window; integer tensors have their own, by the segment's offset in the window."""

    floats: Int64Array
    num_folds: dict[int, int] = field(default_factory=dict)
    integers: dict[int, IntegerArray] = field(default_factory=dict)
    integer_weights: dict[int, int] = field(default_factory=dict)


def aggregate(
    base: RangeReader,
    updates: Sequence[SealedUpdate],
    *,
    spec: RunSpec,
    round_number: int,
    optimizer_state: RangeReader | None,
    write_model: Writer,
    write_state: Writer,
    holds: Header | None = None,
    divisor: float | None = None,
) -> None:
    """Writes the next model, and the optimizer's state where it has one, as safetensors bytes in order.

    The bytes are a function of the base, the set of updates, the spec, the round's number and the state: neither the
    order of the updates nor the size of a window matters. The new model keeps the base's tensors, their order and its
    metadata, and the bytes of those that do not travel. Nothing is written to `write_state` where the optimizer has no
    state. Integer tensors move by the rounded mean of the updates that hold them, whatever the optimizer. `holds` is
    what an update holds, by default the base's tensors that travel; what the base does not have is left alone.
    `divisor` is what the sum of weighted deltas is divided by, by default the sum of the weights. Raises
    ModelOverflowError; OptimizerStateError, ProblemError or EOFError for a stored blob that is not what was accepted.
    """
    if not updates:
        raise ValueError("an aggregate needs at least one update")
    model = read_header(base)
    moving = travelling_part(model, spec)
    plan = _Plan(
        spec=spec,
        round_number=round_number,
        base=_Blob(base, layout_of(model, model)),
        moving=moving.by_name,
        updates=updates,
        layouts=_layouts(updates, model, holds=holds or moving),
        state=open_state(optimizer_state, model, moving=moving, optimizer=spec.server_optimizer),
        shifts=_shifts(updates, model, moving=moving),
        divisor=sum(update.weight for update in updates) if divisor is None else divisor,
        write_model=write_model,
        write_state=write_state,
    )
    _write_headers(plan, model, moving=moving)
    floats, scratch = np.empty(WINDOW_ELEMENTS, dtype=np.int64), np.empty(exact_sum.SCRATCH_ELEMENTS)
    for window in windows(model):
        sums = _Sums(floats=floats[: window[-1].offset + window[-1].num_elements])
        _fold_window(plan, window, sums=sums, scratch=scratch)
        _finish_window(plan, window, sums=sums)


def _layouts(updates: Sequence[SealedUpdate], model: Header, *, holds: Header) -> list[Layout]:
    # Most updates come from the same kind of client: equal layouts are kept once, whole headers not at all.
    known: dict[bytes, Layout] = {}
    layouts = []
    for update in updates:
        header = read_header(update.read)
        check_update_structure(header, holds)
        layout = layout_of(header, model)
        layouts.append(known.setdefault(layout.tobytes(), layout))
    return layouts


def _shifts(updates: Sequence[SealedUpdate], model: Header, *, moving: Header) -> list[int]:
    return [
        exact_sum.shift((update.max_abs[spec.name], update.float_weight) for update in updates)
        if spec.is_float and spec.name in moving.by_name
        else 0
        for spec in model.tensors
    ]


def _write_headers(plan: _Plan, model: Header, *, moving: Header) -> None:
    plan.write_model(render_header([(spec.name, spec.dtype, spec.shape) for spec in model.tensors], model.metadata))
    plan.write_state(state_header(moving, plan.spec.server_optimizer))


def _fold_window(plan: _Plan, window: Sequence[Segment], *, sums: _Sums, scratch: Float64Array) -> None:
    sums.floats.fill(0)
    for update, layout in zip(plan.updates, plan.layouts, strict=True):
        for segment, values in read_window(update.read, window, layout=layout):
            if segment.spec.is_float:
                target = sums.floats[segment.offset : segment.offset + segment.num_elements]
                native = as_native_float(values, segment.spec.dtype)
                shift = plan.shifts[segment.tensor]
                exact_sum.fold(target, native, weight=update.float_weight, shift=shift, scratch=scratch)
                sums.num_folds[segment.offset] = sums.num_folds.get(segment.offset, 0) + 1
            else:
                _fold_integers(plan, segment, sums=sums, values=values, weight=update.weight)


def _fold_integers(plan: _Plan, segment: Segment, *, sums: _Sums, values: Values, weight: int) -> None:
    at = segment.offset
    if at not in sums.integers:
        held = ((update.max_abs.get(segment.spec.name, 0.0), update.weight) for update in plan.updates)
        sums.integers[at] = np.zeros(segment.num_elements, dtype=integer_mean.sum_type(held))
    integer_mean.fold(sums.integers[at], values, weight=weight)
    sums.integer_weights[at] = sums.integer_weights.get(at, 0) + weight


def _finish_window(plan: _Plan, window: Sequence[Segment], *, sums: _Sums) -> None:
    states = {} if plan.state is None else dict(read_states(plan.state, window))
    for segment, base in read_window(plan.base.read, window, layout=plan.base.layout):
        if segment.spec.is_float and segment.spec.name in plan.moving:
            _finish_floats(plan, segment, sums=sums, base=base, state=states.get(segment.offset))
        elif segment.offset in sums.integers:
            total = sums.integers[segment.offset]
            delta = integer_mean.rounded_mean(total, sums.integer_weights[segment.offset])
            plan.write_model(integer_mean.add_saturating(base, delta).tobytes())
        else:
            plan.write_model(base.tobytes())


def _finish_floats(plan: _Plan, segment: Segment, *, sums: _Sums, base: Values, state: Float64Array | None) -> None:
    total = sums.floats[segment.offset : segment.offset + segment.num_elements]
    exact_sum.settle(total, sums.num_folds[segment.offset])
    for begin in range(0, segment.num_elements, _TILE_ELEMENTS):
        tile = slice(begin, begin + _TILE_ELEMENTS)
        mean = exact_sum.mean(total[tile], total_weight=plan.divisor, shift=plan.shifts[segment.tensor])
        states = choice.init(plan.spec.server_optimizer, mean.size) if state is None else unpack(state[tile])
        _step(plan, segment.spec, first=segment.first + begin, delta=mean, base=base[tile], states=states)


def _step(plan: _Plan, spec: TensorSpec, *, first: int, delta: Float64Array, base: Values, states: States) -> None:
    optimizer, wide = plan.spec.server_optimizer, as_float64(base, spec.dtype)
    values, kept = choice.step_tile(optimizer, plan.round_number, delta=delta, base=wide, states=states)
    rounded = from_float64(values, spec.dtype)
    for checked, dtype in ((rounded, spec.dtype), *((one, "F64") for one in kept)):
        _check_finite(spec, checked, dtype=dtype, first=first)
    plan.write_model(rounded.tobytes())
    plan.write_state(pack(kept))


def _check_finite(spec: TensorSpec, values: Values, *, dtype: str, first: int) -> None:
    if not is_finite(values, dtype):
        element = first + int(np.flatnonzero(~np.isfinite(as_float64(values, dtype)))[0])
        raise ModelOverflowError(spec.name, element=element, dtype=dtype)
