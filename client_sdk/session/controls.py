"""SCAFFOLD and FedNova on the client's side: control variates in, what travels beside the delta out.

Karimireddy et al. 2020, arXiv 1910.06378 (option II); Wang et al. 2020, arXiv 2007.07481.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import TrainerError, UntrustedAnswerError, UsageError
from client_sdk.session.deltas import Structure, Update, first_difference, first_non_finite, structure_of
from client_sdk.session.work import TrainingResult, TrainingTask
from fl_protocol.arrays import RawTensor, Tensor, dtype_of
from fl_protocol.dtypes import FLOAT_FORMATS, Float64Array, as_float64, from_float64
from fl_protocol.encodings.forms import CONTROL_PREFIX
from fl_protocol.specs.algorithms import MAX_LOCAL_STEPS, FedAvgAlgorithm, FedNovaAlgorithm
from fl_protocol.specs.parameters import ParametersSpec
from fl_protocol.updates import LOCAL_STEPS_KEY

Controls = Mapping[str, Tensor]
"""A control variate by the names of the model's tensors."""


def control_structure(model: Structure, parameters: ParametersSpec) -> Structure:
    """Describes a control variate: the floating-point tensors that travel, in float32, or float64 where they are."""
    return {
        name: ("F64" if dtype == "F64" else "F32", shape)
        for name, (dtype, shape) in model.items()
        if dtype in FLOAT_FORMATS and parameters.travels(name)
    }


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names a control variate's tensors as the model does; a name that lacks the prefix is left as it is."""
    return {name.removeprefix(CONTROL_PREFIX): tensor for name, tensor in tensors.items()}


def server_control(tensors: Mapping[str, Tensor] | None, work: TrainingTask) -> Controls:
    """Checks the server's control variate as it was sent, None for zeros; raises UntrustedAnswerError."""
    expected = control_structure(structure_of(work.model), work.parameters)
    if tensors is None:
        return _zeros(expected)
    sent = {CONTROL_PREFIX + name: spec for name, spec in expected.items()}
    difference = first_difference(structure_of(tensors), sent) or _not_finite(tensors)
    if difference is not None:
        raise UntrustedAnswerError(f"the server's control variate does not fit the model: {difference}")
    return without_prefix(tensors)


def own_control(tensors: Mapping[str, Tensor] | None, work: TrainingTask) -> Controls:
    """Checks the client's control variate as it was kept, None for zeros; raises UsageError."""
    expected = control_structure(structure_of(work.model), work.parameters)
    if tensors is None:
        return _zeros(expected)
    difference = first_difference(structure_of(tensors), expected) or _not_finite(tensors)
    if difference is not None:
        raise UsageError(
            f"the control variate in the state folder does not fit the run's model: {difference}; "
            "give each client of a run a folder of its own"
        )
    return tensors


def completed(update: Update, result: TrainingResult, work: TrainingTask) -> Update:
    """Adds to an update what the task's algorithm asks for; raises TrainerError naming what the trainer left out."""
    if isinstance(work.algorithm, FedAvgAlgorithm):
        return update
    steps = _checked_steps(result.local_steps, work)
    if isinstance(work.algorithm, FedNovaAlgorithm):
        return replace(update, metadata={**update.metadata, LOCAL_STEPS_KEY: str(steps)})
    control = result.control
    if control is None:
        control = next_control(work, update.delta, local_steps=steps)
    return replace(update, delta={**update.delta, **_control_delta(control, work)}, control=control)


def next_control(work: TrainingTask, delta: Mapping[str, Tensor], *, local_steps: int) -> dict[str, Tensor]:
    """Gives c_i - c + (x - y_i) / (K * learning_rate), where `delta` is y_i - x after K steps of plain SGD.

    Computed in float64 and rounded once to the control variate's type.
    """
    scale = local_steps * work.learning_rate
    following: dict[str, Tensor] = {}
    for name, mine in (work.control or {}).items():
        theirs = (work.server_control or {})[name]
        with np.errstate(over="ignore", invalid="ignore"):
            following[name] = from_float64(_wide(mine) - _wide(theirs) - _wide(delta[name]) / scale, dtype_of(mine))
    return following


def _checked_steps(steps: int | None, work: TrainingTask) -> int:
    kind = work.algorithm.kind
    if steps is None:
        raise TrainerError(
            f"the run's algorithm is {kind}: the trainer must return local_steps, the steps that it took"
        )
    if type(steps) is not int or not 1 <= steps <= MAX_LOCAL_STEPS:
        raise TrainerError(f"the trainer's local_steps {steps!r} must be a whole number from 1 to {MAX_LOCAL_STEPS}")
    return steps


def _control_delta(control: Controls, work: TrainingTask) -> dict[str, Tensor]:
    before = work.control or {}
    try:
        difference = first_difference(structure_of(control), structure_of(before))
    except (AttributeError, ValueError) as error:
        raise TrainerError(f"the trainer's control holds something else than arrays: {error}") from None
    if difference is not None:
        raise TrainerError(f"the trainer's control does not fit the task's: {difference}")
    delta: dict[str, Tensor] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, mine in before.items():
            delta[CONTROL_PREFIX + name] = np.asarray(_values(control[name]) - _values(mine))
    broken = first_non_finite(delta)
    if broken is not None:
        raise TrainerError(f"training diverged: tensor {broken!r} holds NaN or infinity; lower the learning rate")
    return delta


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    broken = first_non_finite(tensors)
    return None if broken is None else f"tensor {broken[:100]!r} holds NaN or infinity"


def _zeros(structure: Structure) -> dict[str, Tensor]:
    return {
        name: np.zeros(shape, dtype="<f8" if dtype == "F64" else "<f4") for name, (dtype, shape) in structure.items()
    }


def _values(tensor: Tensor) -> NDArray[Any]:
    return tensor.data if isinstance(tensor, RawTensor) else tensor


def _wide(tensor: Tensor) -> Float64Array:
    return as_float64(_values(tensor), dtype_of(tensor))
