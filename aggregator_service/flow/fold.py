"""Folds sealed updates into the next model, window by window: memory does not grow with the model or the updates."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from aggregator_service.domain import integer_mean
from aggregator_service.domain.privacy.noised_sum import NoisedSum
from aggregator_service.domain.server_optimizers import choice
from aggregator_service.domain.server_optimizers.states import States
from aggregator_service.domain.strategies.decision import compares, decide
from aggregator_service.flow.begun_sums import BegunSum
from aggregator_service.flow.comparison import inner_products, open_clipped
from aggregator_service.flow.contributions import SealedUpdate
from aggregator_service.flow.deltas import Deltas, combine
from aggregator_service.flow.masked_sums import MaskedRound, combine_masked
from aggregator_service.flow.optimizer_state import StoredState, open_state, pack, read_states, state_header, unpack
from aggregator_service.flow.shards import combine_shards
from aggregator_service.flow.windows import Layout, RangeReader, Segment, layout_of, read_header, read_window
from fl_protocol.dtypes import Float64Array, Values, as_float64, from_float64, is_finite
from fl_protocol.runs import RunSpec
from fl_protocol.specs.strategies import MeanStrategy
from fl_protocol.tensors import Header, TensorSpec, render_header
from fl_protocol.updates import floats_of, travelling_part

__all__ = ["ModelOverflowError", "RangeReader", "SealedUpdate", "aggregate", "aggregate_masked"]

_TILE_ELEMENTS: Final = 1 << 17

Writer = Callable[[bytes], None]


class ModelOverflowError(ArithmeticError):
    """The next model has a value that its own type cannot hold; `tensor` names where."""

    def __init__(self, tensor: str, *, element: int, dtype: str) -> None:
        super().__init__(f"tensor {tensor!r} would not be finite at element {element} in {dtype}; lower learning_rate")
        self.tensor = tensor
        self.element = element


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known of a whole round before its first window."""

    spec: RunSpec
    round_number: int
    read_base: RangeReader
    base_layout: Layout
    moving: Mapping[str, TensorSpec]
    state: StoredState | None
    write_model: Writer
    write_state: Writer


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
    noised: NoisedSum | None = None,
    begun: BegunSum | None = None,
) -> tuple[int, int]:
    """Writes the next model, and the optimizer's state where it has one, as safetensors bytes in order.

    The bytes are a function of the base, the set of updates, the spec, the round's number and the state: neither the
    order of the updates nor the size of a window matters. The new model keeps the base's tensors, their order and its
    metadata, and the bytes of those that do not travel. Nothing is written to `write_state` where the optimizer has no
    state. Integer tensors move by the rounded mean of the updates that hold them, or by their median where the strategy
    goes coordinate by coordinate, whatever the optimizer. `holds` is what an update holds, by default the base's
    tensors that travel; what the base does not have is left alone. `divisor` is what the sum of weighted deltas is
    divided by, by default the sum of the weights. With `noised` each update is clipped, one that holds NaN or an
    infinity counts as zero, the sum gets its noise, and integer tensors stay as they are. A sum `begun` of some of the
    updates saves reading them and changes no bit; one that does not fit them is left alone. Gives how many updates no
    norm clipped, and of how many: with `noised` of those that are not zero. Raises ModelOverflowError;
    OptimizerStateError, ProblemError or EOFError for a stored blob that is not what was accepted.
    """
    if not updates:
        raise ValueError("an aggregate needs at least one update")
    model = read_header(base)
    moving = travelling_part(model, spec)
    bound = None if noised is None else noised.clipping_norm
    if begun is not None and not begun.fits(updates, bound=bound):
        begun = None
    contributions = open_clipped(
        updates,
        model,
        holds=holds or moving,
        encoding=spec.encoding,
        strategy=spec.strategy,
        bound=bound,
        begun=begun,
    )
    if noised is not None:
        moving = floats_of(moving)
        divisor = len(updates) if divisor is None else divisor
    decision = decide(
        spec.strategy,
        [one.update.weight for one in contributions],
        inner_products=inner_products(contributions, model, moving=moving) if compares(spec.strategy) else None,
    )
    plan = _Plan(
        spec=spec,
        round_number=round_number,
        read_base=base,
        base_layout=layout_of(model, model),
        moving=moving.by_name,
        state=open_state(optimizer_state, model, moving=moving, optimizer=spec.server_optimizer),
        write_model=write_model,
        write_state=write_state,
    )
    combined = combine(decision, contributions, model, moving=moving, divisor=divisor, noised=noised, begun=begun)
    _finish(plan, model, moving=moving, combined=combined)
    return sum(one.factor >= 1 for one in contributions), len(contributions)


def aggregate_masked(
    base: RangeReader,
    masked: MaskedRound,
    *,
    spec: RunSpec,
    round_number: int,
    optimizer_state: RangeReader | None,
    write_model: Writer,
    write_state: Writer,
    noised: NoisedSum | None = None,
) -> None:
    """Writes the next model from the sums of a masked round's sessions, as `aggregate` does from updates.

    A strategy that is not the mean combines the sessions' means. Integer tensors stay as they are. Raises what
    `aggregate` raises.
    """
    model = read_header(base)
    moving = floats_of(travelling_part(model, spec))
    plan = _Plan(
        spec=spec,
        round_number=round_number,
        read_base=base,
        base_layout=layout_of(model, model),
        moving=moving.by_name,
        state=open_state(optimizer_state, model, moving=moving, optimizer=spec.server_optimizer),
        write_model=write_model,
        write_state=write_state,
    )
    if isinstance(spec.strategy, MeanStrategy):
        combined = combine_masked(masked, model, moving=moving, noised=noised)
    else:
        combined = combine_shards(masked, model, moving=moving, strategy=spec.strategy)
    _finish(plan, model, moving=moving, combined=combined)


def _finish(
    plan: _Plan, model: Header, *, moving: Header, combined: Iterable[tuple[Sequence[Segment], Deltas]]
) -> None:
    _write_headers(plan, model, moving=moving)
    for window, deltas in combined:
        _finish_window(plan, window, deltas=deltas)


def _write_headers(plan: _Plan, model: Header, *, moving: Header) -> None:
    plan.write_model(render_header([(spec.name, spec.dtype, spec.shape) for spec in model.tensors], model.metadata))
    plan.write_state(state_header(moving, plan.spec.server_optimizer))


def _finish_window(plan: _Plan, window: Sequence[Segment], *, deltas: Deltas) -> None:
    states = {} if plan.state is None else dict(read_states(plan.state, window))
    for segment, base in read_window(plan.read_base, window, layout=plan.base_layout):
        if segment.spec.name not in plan.moving:
            plan.write_model(base.tobytes())
        elif segment.spec.is_float:
            _finish_floats(plan, segment, deltas=deltas, base=base, state=states.get(segment.offset))
        else:
            moved = deltas.integers(segment)
            plan.write_model((base if moved is None else integer_mean.add_saturating(base, moved)).tobytes())


def _finish_floats(plan: _Plan, segment: Segment, *, deltas: Deltas, base: Values, state: Float64Array | None) -> None:
    for begin in range(0, segment.num_elements, _TILE_ELEMENTS):
        tile = slice(begin, begin + _TILE_ELEMENTS)
        delta = deltas.floats(segment, tile)
        states = choice.init(plan.spec.server_optimizer, delta.size) if state is None else unpack(state[tile])
        _step(plan, segment.spec, first=segment.first + begin, delta=delta, base=base[tile], states=states)


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
