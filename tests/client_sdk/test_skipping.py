"""Small updates wait on the client until they are worth sending, over restarts, and nothing of them is lost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk import RoundSpec, RunSpec, TrainedDelta, TrainingTask, participate
from client_sdk.session.deltas import Update
from client_sdk.session.skipping import is_skippable, skipped_update
from client_sdk.testing import FakeAggregator
from fl_protocol.arrays import RawTensor, Tensor, decode
from fl_protocol.dtypes import from_float64
from fl_protocol.specs.privacy import CentralGaussianPrivacy
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.skipping import NormSkipping
from fl_protocol.tasks import Task

BASE: dict[str, Tensor] = {
    "w": np.zeros(4, dtype=np.float32),
    "brain": RawTensor("BF16", np.zeros(2, dtype=np.uint16)),
    "steps": np.array(0, dtype=np.int64),
}


def delta(size: float) -> dict[str, Tensor]:
    brain = RawTensor("BF16", from_float64(np.full(2, size), "BF16"))
    return {"w": np.full(4, size, dtype=np.float32), "brain": brain, "steps": np.array(1, dtype=np.int64)}


def spec(encoding: dict[str, Any], *, rounds: int) -> RunSpec:
    run = RunSpec(num_rounds=rounds, round=RoundSpec(quorum=1), skipping=NormSkipping(below=2.0))
    return run.model_copy(update={"encoding": RunSpec.model_validate({"encoding": encoding}).encoding})


def task(**fields: Any) -> Task:
    told = {"skipping": NormSkipping(below=2.0), "privacy": NoPrivacy(), "task_id": "task_1"}
    return Task.model_construct(**(dict.fromkeys(Task.model_fields) | told | fields))


@pytest.mark.parametrize("encoding", [{"kind": "dense"}, {"kind": "topk", "fraction": 1.0}], ids=["dense", "topk"])
async def test_what_was_skipped_is_sent_with_the_next_update_that_is_large_enough(
    tmp_path: Path, encoding: dict[str, Any]
) -> None:
    fake, sizes = FakeAggregator(), iter((0.5, 0.25, 0.5, 0.125))
    run_id = (await fake.start_run(spec(encoding, rounds=4), BASE)).run_id

    def train(work: TrainingTask) -> TrainedDelta:
        if work.round == 3:
            raise KeyboardInterrupt
        return TrainedDelta(tensors=delta(next(sizes)), num_examples=7)

    async with fake.enrolled("a") as client:
        with pytest.raises(KeyboardInterrupt):
            await participate(client, run_id, train, state_dir=tmp_path)
        for held in fake.runs[run_id].tasks.values():
            held.given_up = False

        def go_on(work: TrainingTask) -> TrainedDelta:
            return TrainedDelta(tensors=delta(next(sizes)), num_examples=7)

        await participate(client, run_id, go_on, state_dir=tmp_path)
    bodies = [held.update for held in fake.runs[run_id].tasks.values() if held.update is not None]
    assert [len(decode(body)) > 0 for body in bodies] == [False, False, True, False]
    moved = decode(fake.runs[run_id].models[-1])
    np.testing.assert_allclose(moved["w"], np.full(4, 1.25))
    assert isinstance(moved["brain"], RawTensor)
    np.testing.assert_array_equal(moved["brain"].data, from_float64(np.full(2, 1.25), "BF16"))


def test_the_norm_is_that_of_all_floating_point_tensors() -> None:
    # w alone has a norm of 1.6, both together have 1.96 and 2.08.
    assert is_skippable(delta(0.8), task())
    assert not is_skippable(delta(0.85), task())
    assert not is_skippable(delta(0.8), task(skipping=NormSkipping(below=1.9)))


def test_two_skipped_updates_never_have_the_same_bytes() -> None:
    update = Update(delta(0.1), {"num_examples": "7"})
    first, second = (skipped_update(update, update.delta, task(task_id=name)) for name in ("task_1", "task_2"))
    assert first.metadata != second.metadata
    assert sorted(first.left) == ["brain", "w"]


def test_in_a_private_run_everything_is_sent_whatever_a_task_says() -> None:
    private = CentralGaussianPrivacy(kind="central_gaussian", clipping_norm=1.0, target_epsilon=8.0, delta=1e-6)
    assert not is_skippable(delta(0.0), task(privacy=private))
