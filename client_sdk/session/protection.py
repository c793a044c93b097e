"""Makes the update of a private run: clipped here too, noised here where the run says so, and nothing beside it."""

from collections.abc import Mapping
from typing import Final, assert_never

from client_sdk.errors import TrainerError, UsageError
from client_sdk.privacy.clipping import clipped_tensors, finite_or_zero
from client_sdk.session.deltas import Update, differences_of, first_non_finite
from client_sdk.session.work import TrainingResult, TrainingTask
from fl_protocol.arrays import Tensor
from fl_protocol.specs.privacy import (
    CentralBltPrivacy,
    CentralGaussianAdaptivePrivacy,
    CentralGaussianPrivacy,
    DistributedSkellamPrivacy,
    ExampleDpsgdPrivacy,
    LocalGaussianPrivacy,
    LocalLaplacePrivacy,
    LocalPrivacy,
)
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.updates import NUM_EXAMPLES_KEY

_METADATA: Final[Mapping[str, str]] = {NUM_EXAMPLES_KEY: "1"}
"""The number of examples and the metrics have no budget in a private run: all clients send the same."""


def protected_update(result: TrainingResult, work: TrainingTask, *, key: bytes) -> Update:
    """Makes a private run's update of a training result; `key` is 32 fresh random bytes for this update alone.

    Only floating-point tensors travel: a counter tells how much was trained. What holds NaN or infinity becomes zero,
    and neither it nor what the trainer reports is a reason to fail, because whether a client fails depends on its data.
    Raises TrainerError for tensors that are not the model's.
    """
    delta, personal = differences_of(result, work.model, parameters=work.parameters, floats_only=True)
    if first_non_finite(personal) is not None:
        personal = {}
    sent, norm = _protected(delta, result, work, key=key)
    return Update(sent, _METADATA, personal, norm=norm)


def _protected(
    delta: Mapping[str, Tensor], result: TrainingResult, work: TrainingTask, *, key: bytes
) -> tuple[dict[str, Tensor], float | None]:
    privacy = work.privacy
    match privacy:
        case CentralGaussianPrivacy() | CentralBltPrivacy():
            return clipped_tensors(delta, clipping_norm=privacy.clipping_norm)
        case CentralGaussianAdaptivePrivacy():
            return clipped_tensors(delta, clipping_norm=privacy.max_clipping_norm)
        case LocalLaplacePrivacy() | LocalGaussianPrivacy():
            return _noised(delta, privacy, key=key)
        case ExampleDpsgdPrivacy():
            if result.spent is None:
                raise TrainerError(
                    "the run's privacy.kind is 'example_dpsgd': the trainer must train with DP-SGD and return what it "
                    "spent, as client_sdk.torch.DpsgdTrainer does"
                )
            return finite_or_zero(delta), None
        case DistributedSkellamPrivacy():
            raise UsageError("an update whose noise the clients share leaves under masks only, as coordinates of a sum")
        case NoPrivacy():
            raise UsageError("a run without privacy has nothing to protect its updates with")
        case _:
            assert_never(privacy)


def _noised(delta: Mapping[str, Tensor], privacy: LocalPrivacy, *, key: bytes) -> tuple[dict[str, Tensor], float]:
    if privacy.noise_multiplier is None:
        raise UsageError("privacy.noise_multiplier is not calibrated; a task's review does that")
    try:
        # The noise needs the extra [privacy], which nobody else shall have to install.
        from client_sdk.privacy.local_noise import noised  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageError(f"privacy.kind {privacy.kind!r} needs {error.name}: install fedquorum[privacy]") from None
    return noised(delta, privacy, noise_multiplier=privacy.noise_multiplier, key=key)
