"""A client counts its own updates, composes its own epsilon, and compares both with what the server says (D24)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from client_sdk import (
    Limits,
    PrivacyBudgetError,
    PrivacyClaimError,
    Progress,
    RunSpec,
    TrainedModel,
    TrainerError,
    TrainingTask,
    UntrustedAnswerError,
    UsageError,
    participate,
)
from client_sdk.errors import TransportError
from client_sdk.privacy.history import FILE_NAME, LedgerHead, Outcome, PrivacyHistory
from client_sdk.session.progress import PrivacySpent
from client_sdk.testing import FakeAggregator
from fl_protocol.privacy.accounting import epsilon_spent
from fl_protocol.runs import Run
from tests.client_sdk.test_privacy_policy import GAUSSIAN, MODEL, private

RUN = "run_" + 32 * "0"
KINDS: dict[str, dict[str, Any]] = {
    "central_gaussian": GAUSSIAN,
    "central_gaussian_adaptive": GAUSSIAN | {"kind": "central_gaussian_adaptive", "count_stddev": 50.0},
    "central_blt": GAUSSIAN | {"kind": "central_blt"},
    "local_laplace": {"kind": "local_laplace", "target_epsilon": 4.0},
    "local_gaussian": GAUSSIAN | {"kind": "local_gaussian"},
}


def train(task: TrainingTask) -> TrainedModel:
    return TrainedModel(tensors={"w": task.model["w"] + np.float32(1)}, num_examples=1)


def never(task: TrainingTask) -> TrainedModel:
    raise AssertionError("nothing may be trained")


def lying(fake: FakeAggregator, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes what the fake says in each task."""
    honest = FakeAggregator._route

    async def changed(request: httpx.Request, content: bytes) -> httpx.Response:
        answer = await honest(fake, request, content)
        if not request.url.path.endswith("/tasks") or answer.status_code >= 204:
            return answer
        task = json.loads(answer.content)
        change(task)
        return httpx.Response(answer.status_code, text=json.dumps(task), headers={"Content-Type": "application/json"})

    fake._route = changed  # type: ignore[method-assign]


def events_of(told: list[Progress]) -> list[PrivacySpent]:
    return [event for event in told if isinstance(event, PrivacySpent)]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_client_composes_is_what_the_server_claims(kind: str, tmp_path: Path) -> None:
    fake, told, claimed = FakeAggregator(), list[Progress](), list[float]()
    run = await fake.start_run(private(KINDS[kind], num_rounds=3), MODEL)
    lying(fake, lambda task: claimed.append(task["privacy_claim"]["epsilon_yours"]))
    async with fake.enrolled("a") as client:
        await participate(client, run.run_id, train, state_dir=tmp_path, on_event=told.append)
    spent = [event.epsilon for event in events_of(told)]
    assert spent == claimed
    assert len(spent) == 3
    assert spent == sorted(spent)
    assert 0.99 * 4.0 < spent[-1] <= 4.0
    assert {event.unit for event in events_of(told)} == {"client"}
    assert {event.delta for event in events_of(told)} == {0.0 if kind == "local_laplace" else 1e-6}


def claim(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda task: task["privacy_claim"].update(fields)


def told_epsilon(factor: float) -> Callable[[dict[str, Any]], None]:
    def change(task: dict[str, Any]) -> None:
        task["privacy_claim"]["epsilon_yours"] *= factor

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (told_epsilon(0.999), "epsilon_yours"),
        (claim(unit="example"), "unit"),
        (claim(trust="nobody"), "trust"),
        (claim(adjacency="replace_one"), "adjacency"),
        (claim(target_epsilon=1.0), "target_epsilon"),
        (claim(delta=1e-9), "delta"),
        (claim(delta=None), "delta"),
        (claim(num_rounds=1), "num_rounds"),
        (claim(max_participations=1), "max_participations"),
        (claim(min_separation=7), "min_separation"),
        (claim(noise_multiplier=100.0), "noise_multiplier"),
        (lambda task: task.update(privacy_claim=None), "privacy_claim"),
        (lambda task: task["privacy"].update(noise_multiplier=0.5), "privacy"),
        (lambda task: task["privacy"].update(clipping_norm=2.0), "privacy"),
        (lambda task: task.update(parameters={"trainable": ["w*"], "personal": []}), "parameters"),
        (lambda task: task.update(algorithm={"kind": "fednova"}), "algorithm"),
        (lambda task: task.update(kind="evaluate"), "kind"),
    ],
)
async def test_a_claim_that_is_not_the_runs_or_too_low_stops_the_client_before_it_trains(
    change: Callable[[dict[str, Any]], None], field: str, tmp_path: Path
) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(GAUSSIAN), MODEL)
    lying(fake, change)
    async with fake.enrolled("a") as client:
        with pytest.raises(PrivacyClaimError) as refused:
            await participate(
                client,
                run.run_id,
                never,
                evaluator=never,
                state_dir=tmp_path,  # type: ignore[arg-type]
            )
    assert refused.value.field == field
    assert field in str(refused.value)
    assert isinstance(refused.value, UntrustedAnswerError)
    (held,) = fake.runs[run.run_id].tasks.values()
    assert held.given_up
    assert held.update is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1])
async def test_a_claim_that_is_no_number_is_no_answer(value: float, tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(GAUSSIAN), MODEL)
    lying(fake, claim(epsilon_yours=value))
    async with fake.enrolled("a") as client:
        with pytest.raises(UntrustedAnswerError, match="epsilon_yours"):
            await participate(client, run.run_id, never, state_dir=tmp_path)


async def test_a_server_that_has_forgotten_an_update_is_stopped_over_a_restart(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(GAUSSIAN, num_rounds=3), MODEL)

    def once(task: TrainingTask) -> TrainedModel:
        if task.round == 2:
            raise InterruptedError
        return train(task)

    async with fake.enrolled("a") as client:
        with pytest.raises(InterruptedError):
            await participate(client, run.run_id, once, state_dir=tmp_path)

        def forget(task: dict[str, Any]) -> None:
            before = RunSpec.model_validate(fake.runs[run.run_id].run.spec)
            lower = epsilon_spent(before, num_participations=1, num_rounds=2)
            task["privacy_claim"].update(num_participations=0, epsilon_yours=lower)

        lying(fake, forget)
        with pytest.raises(PrivacyClaimError, match=r"num_participations is 0; .* holds receipts for 1"):
            await participate(client, run.run_id, never, state_dir=tmp_path)


async def test_a_round_that_was_abandoned_is_no_reason_to_stop(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(GAUSSIAN, round={"quorum": 2, "min_updates": 2}), MODEL)
    state = fake.runs[run.run_id]
    history = PrivacyHistory(run.run_id, tmp_path)
    async with fake.enrolled("a") as client:
        task = await client.claim_task(run.run_id)
        history.sending(task.task_id, "sha256:" + "0" * 64)  # type: ignore[union-attr]
        history.answered(task.task_id, Outcome.ACCEPTED)  # type: ignore[union-attr]
        state.tasks[task.task_id].update = b""  # type: ignore[union-attr]
        state.roll_back(0)
        with pytest.raises(InterruptedError):
            await participate(client, run.run_id, _interrupted, state_dir=tmp_path)


def _interrupted(task: TrainingTask) -> TrainedModel:
    raise InterruptedError


async def test_a_run_that_changes_its_promise_is_refused(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(GAUSSIAN, num_rounds=3), MODEL)
    state = fake.runs[run.run_id]

    def once(task: TrainingTask) -> TrainedModel:
        if task.round == 2:
            raise InterruptedError
        return train(task)

    async with fake.enrolled("a") as client:
        with pytest.raises(InterruptedError):
            await participate(client, run.run_id, once, state_dir=tmp_path)
        weaker = state.run.spec.privacy.model_copy(update={"target_epsilon": 400.0, "noise_multiplier": 0.1})
        state.change(spec=state.run.spec.model_copy(update={"privacy": weaker}))
        with pytest.raises(PrivacyClaimError, match="keeps what it promised"):
            await participate(client, run.run_id, never, state_dir=tmp_path)


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_task_without_the_privacy_that_was_promised_is_refused(is_restarted: bool, tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private({"kind": "local_laplace", "target_epsilon": 4.0}, num_rounds=3), MODEL)

    def once(task: TrainingTask) -> TrainedModel:
        if task.round == 2:
            lying(fake, lambda task: task.update(privacy={"kind": "none"}, privacy_claim=None))
            if is_restarted:
                raise InterruptedError
        if task.round == 3:
            raise AssertionError("nothing is trained for a task that promises less")
        return train(task)

    async with fake.enrolled("a") as client:
        if is_restarted:
            with pytest.raises(InterruptedError):
                await participate(client, run.run_id, once, state_dir=tmp_path)
        with pytest.raises(PrivacyClaimError, match="the server's privacy is 'none'; a run keeps what it promised"):
            await participate(client, run.run_id, never if is_restarted else once, state_dir=tmp_path)


async def test_an_older_copy_of_the_ledger_is_refused(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(GAUSSIAN), MODEL)
    PrivacyHistory(run.run_id, tmp_path).saw_ledger(LedgerHead("sha256:b", 2))
    for head, length, field in (("sha256:a", 1, "ledger_length"), ("sha256:c", 2, "ledger_head")):
        lying(fake, claim(ledger_head=head, ledger_length=length))
        async with fake.enrolled("a") as client:
            with pytest.raises(PrivacyClaimError) as refused:
                await participate(client, run.run_id, never, state_dir=tmp_path)
        assert refused.value.field == field
        for held in fake.runs[run.run_id].tasks.values():
            held.given_up = True
    lying(fake, claim(ledger_head="sha256:c", ledger_length=3))
    async with fake.enrolled("b") as client:
        await participate(client, run.run_id, train, state_dir=tmp_path)
    assert PrivacyHistory(run.run_id, tmp_path).load().ledger == LedgerHead("sha256:c", 3)


async def test_an_update_is_counted_before_it_leaves(tmp_path: Path) -> None:
    """The connection breaks at each PUT: what may have arrived is counted, and with local noise each message is."""
    fake = FakeAggregator()
    run = await fake.start_run(private(KINDS["local_gaussian"], num_rounds=2), MODEL)
    counted: list[int] = []

    def cut(request: httpx.Request) -> None:
        if request.method == "PUT":
            text = (tmp_path / run.run_id / FILE_NAME).read_text()
            counted.append(text.count('"outcome": "sent"'))
            raise httpx.ReadError("cut")

    fake.intercept = cut
    for number in (1, 2):
        with pytest.raises(TransportError):
            await hastily(fake, run, tmp_path)
        assert set(counted) == {number}
        counted.clear()
    with pytest.raises(PrivacyBudgetError, match="update number 3 by its own count") as refused:
        await hastily(fake, run, tmp_path)
    assert (refused.value.field, refused.value.value, refused.value.bound) == ("max_participations", 3, 2)
    assert counted == []


async def hastily(fake: FakeAggregator, run: Run, folder: Path) -> None:
    async with fake.enrolled("a", limits=Limits(max_attempts=1)) as client:
        await participate(client, run.run_id, train, state_dir=folder)


async def test_an_update_that_the_trusted_server_refused_does_not_count(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(GAUSSIAN, num_rounds=2), MODEL)
    state = fake.runs[run.run_id]

    def late_once(task: TrainingTask) -> TrainedModel:
        if task.round == 1 and task.attempt == 1:
            state.roll_back(0)
        return train(task)

    async with fake.enrolled("a") as client:
        done = await participate(client, run.run_id, late_once, state_dir=tmp_path)
    assert (done.num_refused, done.num_updates) == (1, 2)
    known = PrivacyHistory(run.run_id, tmp_path).load()
    assert sorted(known.outcomes.values()) == ["accepted", "accepted", "refused"]
    assert known.num_counting_after("another", each_message=False) == 3
    assert known.num_counting_after("another", each_message=True) == 4


def test_the_history_survives_a_cut_line_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    history = PrivacyHistory(RUN, tmp_path)
    history.sending("task_1", "sha256:a")
    history.sending("task_1", "sha256:a")
    history.sending("task_1", "sha256:b")
    path = tmp_path / RUN / FILE_NAME
    with path.open("a") as file:
        file.write('{"task": "task_2", "outc')
    again = PrivacyHistory(RUN, tmp_path)
    assert again.load().num_counting_after("task_2", each_message=True) == 3
    again.sending("task_2", "sha256:c")
    assert PrivacyHistory(RUN, tmp_path).load().messages == {
        ("task_1", "sha256:a"),
        ("task_1", "sha256:b"),
        ("task_2", "sha256:c"),
    }
    path.write_text('{"task": "task_1"}\n' + path.read_text())
    with pytest.raises(UsageError, match=r"privacy\.jsonl is damaged"):
        PrivacyHistory(RUN, tmp_path).load()
    with pytest.raises(UsageError, match="is not a run's id"):
        PrivacyHistory(f"../{RUN}", tmp_path)


def test_an_accepted_update_stays_accepted_when_it_is_sent_again() -> None:
    history = PrivacyHistory(RUN, None)
    history.sending("task_1", "sha256:a")
    history.answered("task_1", Outcome.ACCEPTED)
    history.sending("task_1", "sha256:b")
    assert history.load().num_accepted == 1
    history.answered("task_2", Outcome.REFUSED)
    assert history.load().num_counting_after("task_3", each_message=False) == 2
    history.sending("task_2", "sha256:c")
    assert history.load().num_counting_after("task_3", each_message=False) == 3


async def test_a_trainer_without_dpsgd_sends_nothing_in_a_run_that_asks_for_it(tmp_path: Path) -> None:
    fake = FakeAggregator()
    dpsgd = {"kind": "example_dpsgd", "target_epsilon": 4.0, "delta": 1e-6}
    run = await fake.start_run(private(dpsgd), MODEL)
    async with fake.enrolled("a") as client:
        with pytest.raises(TrainerError, match="DpsgdTrainer"):
            await participate(client, run.run_id, train, state_dir=tmp_path)
    assert [held.update for held in fake.runs[run.run_id].tasks.values()] == [None]
