"""Encodings on the client's side: what is sent, what is kept for the next update, and what is never lost."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from client_sdk import RoundSpec, RunSpec, TrainedDelta, TrainerError, TrainingTask, UsageError, participate
from client_sdk.compression.decoder import decode_delta
from client_sdk.compression.encoder import encode_delta
from client_sdk.compression.quantising import quantise
from client_sdk.residuals import ResidualStore
from client_sdk.session.deltas import Update
from client_sdk.session.encoding import encoded_update, with_residual
from client_sdk.session.progress import Progress, WorkRefused
from client_sdk.testing import FakeAggregator
from fl_protocol.arrays import RawTensor, Tensor, decode, encode
from fl_protocol.encodings.forms import Quantised
from fl_protocol.specs.encodings import Encoding, Int8Encoding, TopKEncoding
from fl_protocol.specs.privacy import CentralGaussianPrivacy
from fl_protocol.tasks import Task
from tests.support.encoded import decoded, tensors_of

RUN_ID = "run_" + "0" * 32

BASE: dict[str, Tensor] = {
    "w": np.zeros((4, 25), dtype=np.float32),
    "brain": RawTensor("BF16", np.zeros(7, dtype=np.uint16)),
    "steps": np.array(0, dtype=np.int64),
}
ENCODINGS: list[dict[str, Any]] = [
    {"kind": "dense", "dtype": "float16"},
    {"kind": "dense", "dtype": "float32", "compression": {"kind": "zstd"}},
    {"kind": "int8"},
    {"kind": "int4", "compression": {"kind": "zstd", "level": 19}},
    {"kind": "topk", "fraction": 0.2},
    {"kind": "random_mask", "count": 9, "compression": {"kind": "zstd"}},
]


def encoding_of(fields: Mapping[str, Any]) -> Encoding:
    return RunSpec.model_validate({"encoding": fields}).encoding


def delta(seed: int) -> dict[str, Tensor]:
    source = np.random.default_rng(seed)
    return {
        "w": source.standard_normal((4, 25)).astype(np.float32),
        "brain": RawTensor("BF16", (source.standard_normal(7).astype(np.float32).view(np.uint32) >> 16).astype("<u2")),
        "steps": np.array(1, dtype=np.int64),
    }


def wide(tensor: Tensor) -> np.ndarray[Any, Any]:
    if isinstance(tensor, RawTensor):
        return (tensor.data.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return tensor.astype(np.float64)


class Recorder:
    """Keeps the bodies that a fake accepted, and may answer an upload itself."""

    def __init__(self) -> None:
        self.fake = FakeAggregator(intercept=self._see)
        self.answers: list[Callable[[], httpx.Response] | None] = []
        self.codings: list[str] = []

    def _see(self, request: httpx.Request) -> httpx.Response | None:
        if request.method != "PUT" or not request.url.path.endswith("/update"):
            return None
        self.codings.append(request.headers.get("content-encoding", "identity"))
        answer = self.answers.pop(0) if self.answers else None
        return None if answer is None else answer()

    def bodies(self, run_id: str) -> list[bytes]:
        tasks = self.fake.runs[run_id].tasks.values()
        return [held.update for held in tasks if held.update is not None]


def trainer(task: TrainingTask) -> TrainedDelta:
    return TrainedDelta(tensors=delta(task.round), num_examples=1)


def spec(fields: Mapping[str, Any], rounds: int = 4) -> RunSpec:
    return RunSpec(num_rounds=rounds, round=RoundSpec(quorum=1), encoding=encoding_of(fields))


@pytest.mark.parametrize("fields", ENCODINGS, ids=lambda fields: "-".join(map(str, fields.values())))
async def test_a_participant_sends_what_the_task_asks_for(fields: dict[str, Any]) -> None:
    recorder = Recorder()
    run_id = (await recorder.fake.start_run(spec(fields, rounds=2), BASE)).run_id
    async with recorder.fake.enrolled("a") as client:
        await participate(client, run_id, trainer)
    coding = "byte-shuffle, zstd" if "compression" in fields else "identity"
    assert recorder.codings == [coding, coding]
    shapes = {"w": (4, 25), "brain": (7,)}
    values = [decoded(body, shapes, fields) for body in recorder.bodies(run_id)]
    model = decode(recorder.fake.runs[run_id].models[-1])
    total = sum(one["w"] for one in values)
    np.testing.assert_allclose(wide(model["w"]), total, rtol=1e-6, atol=1e-6)
    assert model["steps"] == 2
    if fields["kind"] in ("dense", "int8"):
        np.testing.assert_allclose(total, wide(delta(1)["w"]) + wide(delta(2)["w"]), atol=0.06)


@pytest.mark.parametrize("fields", ENCODINGS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_the_sdk_reads_back_what_it_wrote(fields: dict[str, Any]) -> None:
    encoding, sent = encoding_of(fields), delta(3)
    made = encode_delta(sent, encoding)
    back = decode_delta(made.tensors, made.metadata, model=BASE, encoding=encoding)
    for name, values in made.left.items():
        np.testing.assert_allclose(wide(back[name]) + values, wide(sent[name]), rtol=1e-6)
    if not made.left:
        np.testing.assert_allclose(wide(back["w"]), wide(sent["w"]), atol=0.6 if fields["kind"] == "int4" else 0.03)
    assert back["steps"] == 1


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_at_random_is_unbiased_and_never_more_than_a_step_off(bits: int) -> None:
    rows, row = 20_000, np.linspace(-1, 1, 33) ** 3 * 0.7
    form = Quantised(bits, rows * row.size, row.size)
    codes, scales = quantise(np.tile(row, rows), form, random=np.random.default_rng(1))
    step = float(scales[0])
    values = codes.reshape(rows, row.size) * np.float64(step)
    assert (np.abs(values - row) <= step * (1 + 1e-6)).all()
    # Half a step is the largest standard deviation that one rounding can have.
    assert (np.abs(values.mean(axis=0) - row) <= 5 * step / 2 / np.sqrt(rows)).all()
    assert np.abs(codes).max() == form.most
    assert (scales == scales[0]).all()
    assert step * form.most >= 0.7


def test_rows_of_zeros_and_the_smallest_numbers_are_encoded() -> None:
    tiny = np.float32(1e-45)
    values = np.stack([np.zeros(20), np.full(20, tiny), np.full(20, np.finfo(np.float32).max)]).astype(np.float32)
    made = encode_delta({"w": values}, Int8Encoding())
    found = decoded(_body(made.tensors), {"w": values.shape}, {"kind": "int8"})["w"]
    assert (found[0] == 0).all()
    assert not np.signbit(wide(made.tensors["scales:w"])).any()
    assert (np.abs(found[1]) <= 127 * tiny).all()
    np.testing.assert_allclose(found[2], np.finfo(np.float32).max, rtol=1e-6)


def _body(tensors: Mapping[str, Tensor]) -> bytes:
    return b"".join(encode(tensors, {}))


def test_what_a_type_does_not_hold_is_refused_by_name_and_saturates_in_a_private_run() -> None:
    huge = {"w": np.array([1.0, 7e4], dtype=np.float32)}
    half = encoding_of({"kind": "dense", "dtype": "float16"})
    with pytest.raises(TrainerError, match="'w' moved by 70000, more than F16 holds"):
        encode_delta(huge, half)
    made = encode_delta(huge, half, saturates=True)
    np.testing.assert_array_equal(wide(made.tensors["w"]), [1, 65504])


TOPK: dict[str, Any] = {"kind": "topk", "fraction": 0.1}
MASK: dict[str, Any] = {"kind": "random_mask", "fraction": 0.1}


@pytest.mark.parametrize("fields", [TOPK, MASK], ids=["topk", "random_mask"])
async def test_what_is_not_sent_is_sent_later_over_restarts(tmp_path: Path, fields: dict[str, Any]) -> None:
    recorder = Recorder()
    run_id = (await recorder.fake.start_run(spec(fields, rounds=6), BASE)).run_id

    def interrupted(task: TrainingTask) -> TrainedDelta:
        if task.round == 4:
            raise InterruptedError
        return trainer(task)

    async with recorder.fake.enrolled("a") as client:
        with pytest.raises(InterruptedError):
            await participate(client, run_id, interrupted, state_dir=tmp_path)
        await participate(client, run_id, trainer, state_dir=tmp_path)
    sent = sum(decoded(body, {"w": (4, 25)}, fields)["w"] for body in recorder.bodies(run_id))
    left = tensors_of((tmp_path / run_id / "residual.safetensors").read_bytes())[0]["w"]
    whole = sum(wide(delta(number)["w"]) for number in range(1, 7))
    np.testing.assert_allclose(sent + left, whole, atol=1e-5)
    assert np.abs(left).max() > 0.1
    assert [path.name for path in (tmp_path / run_id).iterdir()] == ["residual.safetensors"]


async def test_an_update_that_is_refused_loses_nothing_of_what_was_not_sent_before(tmp_path: Path) -> None:
    recorder = Recorder()
    run_id = (await recorder.fake.start_run(spec(TOPK, rounds=3), BASE)).run_id
    problem = {"type": "/problems/round-closed", "title": "x", "status": 410, "detail": "late", "retryable": False}
    recorder.answers = [
        None,
        lambda: httpx.Response(410, json=problem, headers={"Content-Type": "application/problem+json"}),
    ]

    rounds = iter((1, 2, 3, 4))

    def give_up(event: Progress) -> None:
        # The fake would hand the same task out again.
        for held in recorder.fake.runs[run_id].tasks.values():
            held.given_up = isinstance(event, WorkRefused) and held.receipt is None

    def counting(task: TrainingTask) -> TrainedDelta:
        number = next(rounds)
        if number == 3:
            # What the second update, which was refused, would have left is forgotten.
            store = ResidualStore(run_id, tmp_path)
            kept.append(store.load(_task(counted_update=None))["w"])
        return TrainedDelta(tensors=delta(number), num_examples=1)

    kept: list[np.ndarray[Any, Any]] = []
    async with recorder.fake.enrolled("a") as client:
        await participate(client, run_id, counting, state_dir=tmp_path, on_event=give_up)
    first = decoded(recorder.bodies(run_id)[0], {"w": (4, 25)}, TOPK)["w"]
    np.testing.assert_allclose(kept[0], wide(delta(1)["w"]) - first, atol=1e-6)


def _task(*, counted_update: str | None) -> Task:
    fields: dict[str, Any] = dict.fromkeys(Task.model_fields)
    return Task.model_construct(**(fields | {"counted_update": counted_update}))


@pytest.mark.parametrize("was_counted", [True, False])
def test_after_a_crash_the_server_says_whether_the_last_update_counts(tmp_path: Path, was_counted: bool) -> None:
    before, after = {"w": np.ones(3, dtype=np.float32)}, {"w": np.full(3, 2, dtype=np.float32)}
    digests = [f"sha256:{digit * 64}" for digit in "ab"]
    store = ResidualStore(RUN_ID, tmp_path)
    store.prepare(digests[0], before)
    store.accepted(digests[0])
    store.prepare(digests[1], after)
    found = ResidualStore(RUN_ID, tmp_path).load(_task(counted_update=digests[was_counted]))
    np.testing.assert_array_equal(found["w"], (after if was_counted else before)["w"])
    assert [path.name for path in (tmp_path / RUN_ID).iterdir()] == ["residual.safetensors"]


def test_a_damaged_residual_or_that_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / RUN_ID).mkdir()
    (tmp_path / RUN_ID / "residual.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is damaged"):
        ResidualStore(RUN_ID, tmp_path).load(_task(counted_update=None))
    with pytest.raises(UsageError, match="'w' does not fit the run's model"):
        with_residual({"w": np.zeros(3)}, {"w": np.zeros(4)})
    with pytest.raises(UsageError, match="not a run's id"):
        ResidualStore("../x", tmp_path)


def test_in_a_private_run_delta_and_residual_together_are_clipped() -> None:
    privacy = CentralGaussianPrivacy(kind="central_gaussian", clipping_norm=1.0, target_epsilon=8.0, delta=1e-6)
    fields = dict.fromkeys(Task.model_fields)
    encoding = TopKEncoding(fraction=1.0)
    task = Task.model_construct(**(fields | {"privacy": privacy, "encoding": encoding}))
    update = Update({"w": np.full(4, 0.5, dtype=np.float32)}, {"num_examples": "1"})
    made = encoded_update(update, task, residual={"w": np.full(4, 2, dtype=np.float32)})
    sent = decoded(_body(made.tensors), {"w": (4,)}, {"kind": "topk"})["w"]
    assert np.linalg.norm(sent) == pytest.approx(1)
    np.testing.assert_allclose(made.left["w"], 0, atol=1e-7)
