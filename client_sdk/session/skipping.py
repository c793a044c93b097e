"""Decides whether an update is worth sending, and makes the one that says it was not."""

import math
from collections.abc import Mapping

import numpy as np

from client_sdk.compression.encoder import EncodedDelta
from client_sdk.session.deltas import Update
from fl_protocol.arrays import RawTensor, Tensor, dtype_of
from fl_protocol.dtypes import FLOAT_FORMATS, Float64Array, as_float64
from fl_protocol.specs.encodings import keeps_residual
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.skipping import NormSkipping
from fl_protocol.tasks import Task
from fl_protocol.updates import SKIPPED, SKIPPED_KEY

_TASK_KEY = "task"


def carries_over(task: Task) -> bool:
    """Tells whether a client adds to each update what earlier ones have not sent."""
    return keeps_residual(task.encoding) or isinstance(task.skipping, NormSkipping)


def is_skippable(delta: Mapping[str, Tensor], task: Task) -> bool:
    """Tells whether a delta is so small that its task lets it wait: its L2 norm over all floating-point tensors."""
    # No run with privacy has skipping, whatever a task may say: not to send would tell of the data.
    if not isinstance(task.skipping, NormSkipping) or not isinstance(task.privacy, NoPrivacy):
        return False
    squares = [float(np.vdot(each, each)) for each in _floats(delta).values()]
    return math.sqrt(math.fsum(squares)) < task.skipping.below


def skipped_update(update: Update, delta: Mapping[str, Tensor], task: Task) -> EncodedDelta:
    """Gives an update without tensors, and all of its floating-point deltas as what is left for the next one.

    Integer tensors count as left out. The task's id keeps two skipped updates apart, whose bytes would else be equal.
    """
    left = {
        name: each.astype(np.float64 if dtype_of(update.delta[name]) == "F64" else np.float32)
        for name, each in _floats(delta).items()
    }
    return EncodedDelta({}, {**update.metadata, SKIPPED_KEY: SKIPPED, _TASK_KEY: task.task_id}, left)


def _floats(delta: Mapping[str, Tensor]) -> dict[str, Float64Array]:
    return {
        name: as_float64(tensor.data if isinstance(tensor, RawTensor) else tensor, dtype_of(tensor))
        for name, tensor in delta.items()
        if dtype_of(tensor) in FLOAT_FORMATS
    }
