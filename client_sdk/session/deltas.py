"""The arithmetic of an update: local minus base, tensor by tensor, in the model's own types."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from client_sdk.errors import TrainerError, UsageError
from client_sdk.session.work import TrainedModel, TrainingResult
from fl_protocol.arrays import RawTensor, Tensor, dtype_of
from fl_protocol.dtypes import CARRIERS, FLOAT_FORMATS, as_float64, from_float64, is_finite
from fl_protocol.specs.parameters import ParametersSpec
from fl_protocol.tasks import EvaluationReport
from fl_protocol.tensors import LENGTH_BYTES, header_limit
from fl_protocol.updates import METRICS_KEY, NUM_EXAMPLES_KEY

Structure = Mapping[str, tuple[str, tuple[int, ...]]]
"""The type and shape of each tensor of a model, by name."""

_COUNTERS: Final = frozenset({"I64", "I32", "I16", "I8"})
_MAX_COUNT: Final = 2**53
_ALL: Final = ParametersSpec()


@dataclass(frozen=True, slots=True)
class Update:
    """What is sent back: the tensors and the metadata of its file; the rest is kept here.

    `norm` is what the delta measured before it was clipped, in a run that clips it.
    """

    delta: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    personal: Mapping[str, Tensor] = field(default_factory=dict)
    control: Mapping[str, Tensor] | None = None
    norm: float | None = None


def structure_of(model: Mapping[str, Tensor]) -> Structure:
    """Describes a model's tensors; raises ValueError naming one whose type cannot travel."""
    return {name: (dtype_of(tensor), tensor.shape) for name, tensor in model.items()}


def first_difference(found: Structure, expected: Structure) -> str | None:
    """Says in one sentence where two structures part; None where they agree."""
    for name, (dtype, shape) in expected.items():
        if name not in found:
            return f"tensor {name!r} is missing; {dtype} of shape {list(shape)} is expected"
        if found[name] != (dtype, shape):
            other = f"{found[name][0]} of shape {list(found[name][1])}"
            return f"tensor {name!r} is {other}; {dtype} of shape {list(shape)} is expected"
    unknown = next((name for name in found if name not in expected), None)
    return None if unknown is None else f"tensor {unknown[:100]!r} is not part of the model"


def max_file_bytes(structure: Structure) -> int:
    """Bounds the size of a safetensors file of this structure, its header included."""
    tensors = sum(math.prod(shape) * CARRIERS[dtype].itemsize for dtype, shape in structure.values())
    return LENGTH_BYTES + header_limit(len(structure)) + tensors


def update_of(result: TrainingResult, base: Mapping[str, Tensor], *, parameters: ParametersSpec = _ALL) -> Update:
    """Makes the update of a training result; raises TrainerError naming the tensor or metric that cannot be sent."""
    report = _checked_report(result)
    delta, personal = differences_of(result, base, parameters=parameters)
    _check_finite({**delta, **personal})
    metadata = {NUM_EXAMPLES_KEY: str(report.num_examples)}
    if report.metrics:
        metadata[METRICS_KEY] = json.dumps(dict(report.metrics), allow_nan=False)
    return Update(delta, metadata, personal)


def differences_of(
    result: TrainingResult, base: Mapping[str, Tensor], *, parameters: ParametersSpec, floats_only: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gives local minus base of the tensors that travel, and the personal tensors; values are not looked at.

    Raises TrainerError naming the tensor that is not as the model's, or the counter that moved by more than it can say.
    """
    if isinstance(result, TrainedModel):
        delta = _difference(result.tensors, base, parameters=parameters, floats_only=floats_only)
        personal = {name: _copy(result.tensors[name]) for name in base if parameters.is_personal(name)}
        return delta, personal
    _check_delta(result.tensors, base, parameters=parameters)
    kept = {name: each for name, each in result.tensors.items() if not floats_only or dtype_of(each) in FLOAT_FORMATS}
    return kept, {}


def _checked_report(result: TrainingResult) -> EvaluationReport:
    try:
        metrics = {name: float(value) for name, value in result.metrics.items()}
        return EvaluationReport(num_examples=int(result.num_examples), metrics=metrics)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise TrainerError(f"the trainer's {where} cannot be sent: {fault['msg']}") from None
    except (TypeError, ValueError) as error:
        raise TrainerError(f"the trainer's num_examples or metrics are not numbers: {error}") from None


def _difference(
    local: Mapping[str, Tensor], base: Mapping[str, Tensor], *, parameters: ParametersSpec, floats_only: bool
) -> dict[str, Tensor]:
    expected = structure_of(base)
    needed = {name: spec for name, spec in expected.items() if name in local or not parameters.is_frozen(name)}
    difference = first_difference(_structure_of_result(local), needed)
    if difference is not None:
        raise TrainerError(f"the trainer's model is not the round's: {difference}")
    return {
        name: _subtract(name, local=local[name], base=tensor)
        for name, tensor in base.items()
        if parameters.travels(name) and _has_difference(dtype_of(tensor), floats_only=floats_only)
    }


def _structure_of_result(tensors: Mapping[str, Tensor]) -> Structure:
    try:
        return structure_of(tensors)
    except (AttributeError, ValueError) as error:
        raise TrainerError(f"the trainer returned something else than arrays: {error}") from None


def _has_difference(dtype: str, *, floats_only: bool) -> bool:
    # An unsigned counter cannot hold a negative difference, and a flag has none: the contract lets both be left out.
    return dtype in FLOAT_FORMATS or (dtype in _COUNTERS and not floats_only)


def _subtract(name: str, *, local: Tensor, base: Tensor) -> Tensor:
    dtype = dtype_of(base)
    mine, theirs = _values(local), _values(base)
    if dtype in _COUNTERS:
        return _subtract_counters(name, local=mine, base=theirs)
    if dtype in {"F32", "F64"}:
        with np.errstate(all="ignore"):
            return np.asarray(np.subtract(mine, theirs))
    narrowed = from_float64(as_float64(mine, dtype) - as_float64(theirs, dtype), dtype)
    return RawTensor("BF16", narrowed) if dtype == "BF16" else narrowed


def _subtract_counters(name: str, *, local: NDArray[Any], base: NDArray[Any]) -> NDArray[Any]:
    size = np.abs(local.astype(np.float64) - base.astype(np.float64))
    if size.size and size.max() > min(_MAX_COUNT, np.iinfo(base.dtype).max):
        raise TrainerError(f"tensor {name!r} moved by {size.max():g}, more than {base.dtype} can say")
    return np.asarray(np.subtract(local, base))


def _check_delta(delta: Mapping[str, Tensor], base: Mapping[str, Tensor], *, parameters: ParametersSpec) -> None:
    if parameters.personal:
        raise TrainerError("the run has personal tensors: return a TrainedModel, whose own values of them can be kept")
    expected = {name: spec for name, spec in structure_of(base).items() if parameters.travels(name)}
    needed = {name: spec for name, spec in expected.items() if spec[0] in FLOAT_FORMATS or name in delta}
    difference = first_difference(_structure_of_result(delta), needed)
    if difference is not None:
        raise TrainerError(f"the trainer's delta does not fit the round's model: {difference}")


def _check_finite(delta: Mapping[str, Tensor]) -> None:
    name = first_non_finite(delta)
    if name is not None:
        raise TrainerError(f"training diverged: tensor {name!r} holds NaN or infinity; lower the learning rate")


def first_non_finite(model: Mapping[str, Tensor]) -> str | None:
    """Names the first tensor that holds NaN or infinity; None if every value is finite."""
    for name, tensor in model.items():
        dtype = dtype_of(tensor)
        if dtype in FLOAT_FORMATS and not is_finite(_contiguous(tensor), dtype):
            return name
    return None


def with_personal(
    model: Mapping[str, Tensor], kept: Mapping[str, Tensor], *, parameters: ParametersSpec
) -> Mapping[str, Tensor]:
    """Puts a client's personal tensors into the global model; raises UsageError naming one that does not fit it."""
    if not kept:
        return model
    personal = {name: spec for name, spec in structure_of(model).items() if parameters.is_personal(name)}
    difference = first_difference(structure_of(kept), personal)
    if difference is not None:
        raise UsageError(f"the personal tensors that were kept for this run do not fit its model: {difference}")
    return {**model, **kept}


def _copy(tensor: Tensor) -> Tensor:
    return RawTensor(tensor.dtype, np.array(tensor.data)) if isinstance(tensor, RawTensor) else np.array(tensor)


def _values(tensor: Tensor) -> NDArray[Any]:
    return tensor.data if isinstance(tensor, RawTensor) else tensor


def _contiguous(tensor: Tensor) -> NDArray[Any]:
    values = np.ascontiguousarray(_values(tensor))
    return values.astype(values.dtype.newbyteorder("="), copy=False)
