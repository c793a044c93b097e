"""Makes the update of a masked run: what of it is added up, clipped and weighed, and nothing beside it."""

import math
from collections.abc import Mapping

import numpy as np

from client_sdk.errors import TrainerError
from client_sdk.masking.terms import MaskedRound
from client_sdk.masking.update import MaskedUpdate, clipping_factor, euclidean_norm
from client_sdk.privacy.clipping import like
from client_sdk.session.deltas import Structure, differences_of, first_non_finite
from client_sdk.session.work import TrainingResult, TrainingTask
from fl_protocol.arrays import Tensor
from fl_protocol.dtypes import FLOAT_FORMATS
from fl_protocol.manifests import ManifestTensor
from fl_protocol.masked_vectors import extras_of, weight_of
from fl_protocol.messages import MAX_EXACT_INTEGER
from fl_protocol.privacy.shared_noise import shared_noise
from fl_protocol.specs.parameters import ParametersSpec
from fl_protocol.specs.privacy import DistributedSkellamPrivacy
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.secure_aggregation import is_weighted


def coordinates_of(model: Structure, parameters: ParametersSpec) -> list[ManifestTensor]:
    """Lists the tensors whose elements a masked vector holds, in the model's order."""
    return [
        ManifestTensor(name=name, dtype=dtype, shape=list(shape), num_elements=math.prod(shape))
        for name, (dtype, shape) in model.items()
        if dtype in FLOAT_FORMATS and parameters.travels(name)
    ]


def masked_update(result: TrainingResult, work: TrainingTask, round_: MaskedRound) -> MaskedUpdate:
    """Makes the update of a training result, for a session's sum.

    How many examples there were, and what was measured, leaves as masked coordinates where the run declares them and
    not at all where it does not. In a private run NaN and infinity make the update zero, as whether a client fails
    depends on its data. Raises TrainerError for them elsewhere, and for tensors that are not the model's.
    """
    is_private = not isinstance(work.privacy, NoPrivacy)
    delta, personal = differences_of(result, work.model, parameters=work.parameters, floats_only=True)
    norm = euclidean_norm(delta.values())
    broken = first_non_finite(personal)
    if not is_private and (broken is not None or not math.isfinite(norm)):
        name = first_non_finite(delta) if broken is None else broken
        raise TrainerError(f"training diverged: tensor {name!r} holds NaN or infinity; lower the learning rate")
    delta = delta if math.isfinite(norm) else _zeros(delta)
    personal = personal if broken is None else {}
    spec = round_.spec
    weight = weight_of(_num_examples(result), spec) if is_weighted(spec) else 1
    bound = round_.manifest.secure_aggregation.clipping_norm
    return MaskedUpdate(
        tensors=[delta[tensor.name] for tensor in round_.manifest.model.tensors],
        factor=clipping_factor(norm, clipping_norm=bound) if math.isfinite(norm) else 1.0,
        weight=weight,
        extras=extras_of(weight, _metrics(result, round_), spec),
        norm=norm,
        personal=personal,
        noise=shared_noise(spec) if isinstance(spec.privacy, DistributedSkellamPrivacy) else None,
    )


def _zeros(delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: like(tensor, np.zeros(tensor.shape)) for name, tensor in delta.items()}


def _num_examples(result: TrainingResult) -> int:
    try:
        count = int(result.num_examples)
    except (TypeError, ValueError):
        count = 0
    if not 1 <= count <= MAX_EXACT_INTEGER:
        raise TrainerError(
            f"the trainer's num_examples is {result.num_examples!r}; the run's mean needs an integer of at least 1"
        )
    return count


def _metrics(result: TrainingResult, round_: MaskedRound) -> dict[str, float]:
    """Gives what was measured of the metrics that the run declares; what is no number counts as not measured."""
    extras = set(round_.manifest.model.extras)
    found = {}
    for name, value in result.metrics.items():
        if name in extras:
            try:
                found[name] = float(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise TrainerError(f"the trainer's metric {name!r} is no number: {error}") from None
    return found
