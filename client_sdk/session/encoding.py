"""Makes what is put of an update: with what earlier ones did not send, encoded as the task asks for it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.compression.encoder import EncodedDelta, Entropy, encode_delta
from client_sdk.errors import UsageError
from client_sdk.privacy.clipping import Norm, clip
from client_sdk.session.deltas import Update
from client_sdk.session.skipping import is_skippable, skipped_update
from fl_protocol.arrays import RawTensor, Tensor, dtype_of
from fl_protocol.dtypes import as_float64, from_float64
from fl_protocol.specs.encodings import DenseEncoding
from fl_protocol.specs.privacy import CentralGaussianAdaptivePrivacy, CentralPrivacy
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.tasks import Task

Residual = Mapping[str, NDArray[Any]]
"""What a client has not sent yet, by tensor."""


def encoded_update(update: Update, task: Task, *, residual: Residual, entropy: Entropy = os.urandom) -> EncodedDelta:
    """Encodes an update with the residual of the earlier ones added to it.

    In a private run the sum of both is clipped once more, and nothing is too large to be sent: whether a client fails
    must not depend on its data. What is small enough for the run to let it wait is skipped. Raises UsageError for a
    residual that is not the model's.
    """
    delta = with_residual(update.delta, residual)
    if residual and isinstance(task.privacy, CentralPrivacy):
        delta = _clipped(delta, task.privacy)
    if is_skippable(delta, task):
        return skipped_update(update, delta, task)
    if residual and isinstance(task.encoding, DenseEncoding):
        delta = {name: _narrowed(each, dtype_of(update.delta[name])) for name, each in delta.items()}
    encoded = encode_delta(delta, task.encoding, saturates=not isinstance(task.privacy, NoPrivacy), entropy=entropy)
    return replace(encoded, metadata={**update.metadata, **encoded.metadata})


def with_residual(delta: Mapping[str, Tensor], residual: Residual) -> Mapping[str, Tensor]:
    """Adds what was left to a delta, in float64 where there is any."""
    if not residual:
        return delta
    for name, left in residual.items():
        if name not in delta or delta[name].shape != left.shape:
            raise UsageError(
                f"what earlier updates left of tensor {name[:100]!r} does not fit the run's model; give each client of "
                "a run a folder of its own"
            )
    return {name: _sum(tensor, residual.get(name)) for name, tensor in delta.items()}


def _sum(tensor: Tensor, left: NDArray[Any] | None) -> Tensor:
    if left is None:
        return tensor
    values = tensor.data if isinstance(tensor, RawTensor) else tensor
    return np.asarray(as_float64(values, dtype_of(tensor)) + left)


def _narrowed(tensor: Tensor, dtype: str) -> Tensor:
    if dtype_of(tensor) == dtype or isinstance(tensor, RawTensor):
        return tensor
    narrowed = from_float64(tensor, dtype)
    return RawTensor("BF16", narrowed) if dtype == "BF16" else narrowed


def _clipped(delta: Mapping[str, Tensor], privacy: CentralPrivacy) -> Mapping[str, Tensor]:
    bound = privacy.max_clipping_norm if isinstance(privacy, CentralGaussianAdaptivePrivacy) else privacy.clipping_norm
    return dict(clip(delta, clipping_norm=bound, norm=Norm.L2).values)
