"""A SCAFFOLD client in a process of its own that SIGKILLs itself at a named point of its update of round 2.

python -m tests.support.mortal_client SERVER RUN_ID TOKEN STATE_DIR POINT
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from client_sdk import TrainedModel, TrainingTask, controls
from client_sdk.blocking import participate_blocking
from client_sdk.client import AggregatorClient
from client_sdk.controls import ControlStore
from fl_protocol.tasks import Task

POINTS: Final = ("before_keep", "amid_keep", "after_keep", "after_put")
STEPS: Final = 3


def train(task: TrainingTask, number: int) -> TrainedModel:
    """Takes a few corrected steps on a quadratic loss of the client's own: a function of the task."""
    if task.control is None or task.server_control is None:
        raise AssertionError("the task has no control variates")
    local = task.model["w"].astype(np.float64)
    for _ in range(STEPS):
        gradient = (1 + number) * (local - number)
        local = local - task.training.learning_rate * (gradient - task.control["w"] + task.server_control["w"])
    return TrainedModel(tensors={"w": local.astype(np.float32)}, num_examples=number + 1, local_steps=STEPS)


def arm(point: str) -> None:
    """Replaces what is called at a point by the same with a death before, in or after it, from round 2 on."""
    keep, replace, put = ControlStore.keep, controls.replace_file, AggregatorClient.put_update
    round_number = 1

    def die_at(here: str) -> None:
        if point == here and round_number > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_keep(store: ControlStore, task: Task, *kept: Any) -> None:
        nonlocal round_number
        round_number = task.round
        die_at("before_keep")
        keep(store, task, *kept)
        die_at("after_keep")

    def dying_replace(path: Path, pieces: Iterable[bytes]) -> None:
        def written() -> Iterator[bytes]:
            yield from pieces
            die_at("amid_keep")

        replace(path, written())

    async def dying_put(*args: Any) -> Any:
        receipt = await put(*args)
        die_at("after_put")
        return receipt

    ControlStore.keep = dying_keep  # type: ignore[method-assign]
    controls.replace_file = dying_replace
    AggregatorClient.put_update = dying_put  # type: ignore[method-assign]


if __name__ == "__main__":
    server, run_id, token, state_dir, point = sys.argv[1:]
    arm(point)
    participate_blocking(server, run_id, lambda task: train(task, 0), token=token, state_dir=Path(state_dir))
