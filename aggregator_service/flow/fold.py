"""Folds sealed updates into the next model, window by window: memory does not grow with the model or the updates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from aggregator_service.domain import integer_mean
from aggregator_service.domain.server_optimizers import sgd
from aggregator_service.domain.strategies.decision import compares, decide
from aggregator_service.flow.comparison import clipped, inner_products
from aggregator_service.flow.contributions import SealedUpdate, open_contributions
from aggregator_service.flow.deltas import Deltas, combine
from aggregator_service.flow.read_ahead import ReadAhead
from aggregator_service.flow.windows import Layout, RangeReader, Segment, layout_of, read_header, read_window
from fl_protocol.dtypes import Float64Array, Values, as_float64, from_float64, is_finite
from fl_protocol.runs import RunSpec
from fl_protocol.tensors import Header, TensorSpec, render_header

__all__ = ["ModelOverflowError", "RangeReader", "SealedUpdate", "aggregate"]

_TILE_ELEMENTS: Final = 1 << 17

Writer = Callable[[bytes], None]


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
    base: _Blob
    state: _Blob | None
    write_model: Writer
    write_state: Writer


def aggregate(
    base: RangeReader,
    updates: Sequence[SealedUpdate],
    *,
    spec: RunSpec,
    optimizer_state: RangeReader | None,
    write_model: Writer,
    write_state: Writer,
) -> None:
    """Writes the next model, and the optimizer's state where it has one, as safetensors bytes in order.

    The bytes are a function of the base, the set of updates, the spec and the state: neither the order of the updates
    nor the size of a window matters. The new model keeps the base's tensors, their order and its metadata. The state
    holds one F64 tensor for each floating-point tensor; nothing is written to `write_state` where there is none.
    Integer tensors move by the rounded mean of the updates that hold them, or by their median where the strategy goes
    coordinate by coordinate, whatever the optimizer. Raises ModelOverflowError; ProblemError or EOFError for a stored
    blob that is not what was accepted.
    """
    if not updates:
        raise ValueError("an aggregate needs at least one update")
    model = read_header(base)
    contributions = clipped(open_contributions(updates, model), model, strategy=spec.strategy)
    decision = decide(
        spec.strategy,
        [one.update.weight for one in contributions],
        inner_products=inner_products(contributions, model) if compares(spec.strategy) else None,
    )
    plan = _Plan(
        spec=spec,
        base=_blob(base, model, model=model),
        state=_state_blob(optimizer_state, model, spec=spec),
        write_model=write_model,
        write_state=write_state,
    )
    _write_headers(plan, model)
    for window, deltas in combine(decision, contributions, model):
        _finish_window(plan, window, deltas=deltas)


def _blob(read: RangeReader, header: Header, *, model: Header) -> _Blob:
    return _Blob(ReadAhead(read, num_bytes=header.num_bytes, num_readers=1), layout_of(header, model))


def _state_tensors(model: Header) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(spec.name, "F64", spec.shape) for spec in model.tensors if spec.is_float]


def _state_blob(read: RangeReader | None, model: Header, *, spec: RunSpec) -> _Blob | None:
    if read is None or not sgd.has_state(spec.server_optimizer):
        return None
    header = read_header(read)
    if [(held.name, held.dtype, held.shape) for held in header.tensors] != _state_tensors(model):
        raise ValueError("the stored optimizer state does not belong to this model")
    return _blob(read, header, model=model)


def _write_headers(plan: _Plan, model: Header) -> None:
    plan.write_model(render_header([(spec.name, spec.dtype, spec.shape) for spec in model.tensors], model.metadata))
    if sgd.has_state(plan.spec.server_optimizer):
        plan.write_state(render_header(_state_tensors(model), {"kind": plan.spec.server_optimizer.kind}))


def _finish_window(plan: _Plan, window: Sequence[Segment], *, deltas: Deltas) -> None:
    states = {} if plan.state is None else dict(_read_state(plan.state, window))
    for segment, base in read_window(plan.base.read, window, layout=plan.base.layout):
        if segment.spec.is_float:
            _finish_floats(plan, segment, deltas=deltas, base=base, state=states.get(segment.offset))
        else:
            moved = deltas.integers(segment)
            plan.write_model((base if moved is None else integer_mean.add_saturating(base, moved)).tobytes())


def _read_state(state: _Blob, window: Sequence[Segment]) -> list[tuple[int, Float64Array]]:
    kept = [segment.as_float64() for segment in window if segment.spec.is_float]
    return [(segment.offset, values) for segment, values in read_window(state.read, kept, layout=state.layout)]


def _finish_floats(plan: _Plan, segment: Segment, *, deltas: Deltas, base: Values, state: Float64Array | None) -> None:
    optimizer, dtype = plan.spec.server_optimizer, segment.spec.dtype
    for begin in range(0, segment.num_elements, _TILE_ELEMENTS):
        tile = slice(begin, begin + _TILE_ELEMENTS)
        mean = deltas.floats(segment, tile)
        previous = None if state is None else state[tile]
        if previous is None and sgd.has_state(optimizer):
            previous = sgd.init(mean.size)
        velocity = sgd.velocity(optimizer, mean, previous=previous)
        rounded = from_float64(sgd.step(optimizer, as_float64(base[tile], dtype), velocity=velocity), dtype)
        _check_finite(segment.spec, rounded, first=segment.first + begin)
        plan.write_model(rounded.tobytes())
        if previous is not None:
            plan.write_state(velocity.astype("<f8", copy=False).tobytes())


def _check_finite(spec: TensorSpec, values: Values, *, first: int) -> None:
    if not is_finite(values, spec.dtype):
        element = first + int(np.flatnonzero(~np.isfinite(as_float64(values, spec.dtype)))[0])
        raise ModelOverflowError(spec.name, element=element, dtype=spec.dtype)
