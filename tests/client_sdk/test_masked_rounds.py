"""Whole masked runs: real participants of the SDK and the real server."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from client_sdk import AggregatorClient, Limits, Progress, RunSpec, ServerError, TrainedDelta, TrainingTask, participate
from client_sdk.client import Seams
from client_sdk.session.progress import SessionAdvanced, SessionFailed, SessionJoined, TaskGivenUp, UpdateCounted
from fl_protocol.masked_vectors import ring_of
from fl_protocol.sessions import SessionState
from tests.support.evil_clients import (
    MESSAGES,
    Vanished,
    answering_both,
    answering_wrong,
    sending_garbage,
    vanishing,
)
from tests.support.masked import masked_spec
from tests.support.participant import Participant, create_run, enrol, small_model, unpack
from tests.support.server import ServerProcess

FAST = Limits(wait_seconds=5)

# The server's half is tried on both databases elsewhere; which one it has makes no difference to a participant.
pytestmark = pytest.mark.parametrize("shared_server", ["sqlite"], indirect=True)


class Recorder(httpx.AsyncBaseTransport):
    """Keeps every request that goes through it, as a proxy would see it."""

    def __init__(self, seen: list[tuple[str, bytes, bytes]]) -> None:
        self.inner = httpx.AsyncHTTPTransport(verify=False)
        self.seen = seen

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]
        headers = b"\n".join(name + b": " + value for name, value in request.headers.raw)
        self.seen.append((f"{request.method} {request.url}", headers, body))
        sent = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        return await self.inner.handle_async_request(sent)

    async def aclose(self) -> None:
        await self.inner.aclose()


def read(operator: httpx.Client, path: str) -> httpx.Response:
    return operator.get(path)


def delta_of(number: int) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    return {name: np.float32(0.1 * generator.normal(size=values.shape)) for name, values in small_model().items()}


def trainer_of(number: int, *, num_examples: int) -> Callable[[TrainingTask], TrainedDelta]:
    def train(task: TrainingTask) -> TrainedDelta:
        metrics = {"loss": 1.0 + number, "secret_metric": 12345.678}
        return TrainedDelta(tensors=delta_of(number), num_examples=num_examples, metrics=metrics)

    return train


async def one(
    client: Participant,
    run_id: str,
    url: str,
    *,
    number: int,
    folder: Path,
    num_examples: int = 100,
    transport: httpx.AsyncBaseTransport | None = None,
    on_event: Callable[[Progress], None] = lambda event: None,
) -> None:
    async with AggregatorClient(url, token=client.token, limits=FAST, seams=Seams(transport=transport)) as sdk:
        await participate(
            sdk,
            run_id,
            trainer_of(number, num_examples=num_examples),
            state_dir=folder / str(number),
            client_id=client.client_id,
            on_event=on_event,
        )


async def test_a_masked_run_gives_the_weighted_mean_and_no_request_tells_more(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    """S5: what a proxy sees of five clients over two rounds, compared with the plain mean of their updates."""
    secure = {"metrics": {"loss": {"max_abs": 16.0}}, "min_members": 5}
    spec = masked_spec(5, num_rounds=2, secure_aggregation=secure)
    run_id = create_run(shared_operator, small_model(), **spec)
    examples = [100, 200, 300, 400, 100_000]
    seen, told = list[tuple[str, bytes, bytes]](), list[Progress]()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as clients:
            for number, count in enumerate(examples):
                client = enrol(shared_operator, f"proxied-{number}")
                call = functools.partial(
                    one,
                    client,
                    run_id,
                    shared_server.url,
                    number=number,
                    folder=tmp_path,
                    num_examples=count,
                    transport=Recorder(seen),
                    on_event=told.append,
                )
                clients.start_soon(call)
    weights = [1, 2, 3, 4, 100]
    model = unpack(read(shared_operator, f"/v1/runs/{run_id}/models/2").content)
    step = ring_of(RunSpec.model_validate(spec)).step
    for name, base in small_model().items():
        mean = sum(w * delta_of(i)[name].astype(np.float64) for i, w in enumerate(weights)) / sum(weights)
        np.testing.assert_allclose(model[name] - base, 2 * mean, atol=2 * step + 1e-6)
    loss = sum(w * (1 + i) for i, w in enumerate(weights)) / sum(weights)
    metrics = read(shared_operator, f"/v1/runs/{run_id}/rounds/1").json()["metrics"]
    assert metrics == {"loss": pytest.approx(loss, abs=1e-3)}
    for what, headers, body in seen:
        shown = what.encode() + headers + body
        assert not re.search(rb"num_examples|metric|loss|accuracy|100000|12345", shown), what
        if headers.lower().find(b"application/json") >= 0:
            assert set(json.loads(body)) <= {"public_key", "certificate"}, what
    vectors = [body for what, _, body in seen if "/inputs/" in what]
    assert len(vectors) == 10
    shown = [values.tobytes()[:8] for number in range(5) for values in delta_of(number).values()]
    assert not any(eight in body for eight in shown for body in vectors)
    assert sum(isinstance(event, UpdateCounted) for event in told) == 10
    assert {event.phase for event in told if isinstance(event, SessionAdvanced)} == {
        SessionState.SHARES,
        SessionState.INPUT,
        SessionState.CONSISTENCY,
        SessionState.UNMASK,
    }
    assert {event.num_members for event in told if isinstance(event, SessionJoined)} == {5}


async def federation(
    operator: httpx.Client,
    url: str,
    folder: Path,
    *,
    num_clients: int,
    evil: httpx.AsyncBaseTransport,
    **spec: Any,
) -> tuple[str, list[Progress]]:
    """Runs a run with one evil client and gives what the honest ones told."""
    run_id = create_run(operator, small_model(), **masked_spec(num_clients, **spec))
    told = list[Progress]()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as clients:
            for number in range(num_clients):
                call = functools.partial(
                    one,
                    enrol(operator, f"member-{number}"),
                    run_id,
                    url,
                    number=number,
                    folder=folder,
                    transport=evil if number == 0 else None,
                    on_event=told.append if number else _ignore,
                )
                clients.start_soon(_evil if number == 0 else _honest, call)
    return run_id, told


def _ignore(event: Progress) -> None:
    """Nobody believes an evil client."""


async def _honest(call: Callable[[], Any]) -> None:
    await call()


async def _evil(call: Callable[[], Any]) -> None:
    try:
        await call()
    except (Vanished, ServerError):
        return


@pytest.mark.parametrize("phase", MESSAGES)
async def test_a_client_that_vanishes_in_a_phase_costs_the_others_nothing(
    phase: str, shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    """S2 over HTTP: who has sent its input is counted, whether it comes back or not."""
    num_counted = 6 if phase in ("shares", "inputs") else 7
    run_id, told = await federation(
        shared_operator,
        shared_server.url,
        tmp_path,
        num_clients=7,
        evil=vanishing(phase),
        round={"quorum": num_counted},
        secure_aggregation={"min_members": 5, "phase_seconds": 2.0},
    )
    assert read(shared_operator, f"/v1/runs/{run_id}").json()["state"] == "completed"
    counted = [event for event in told if isinstance(event, UpdateCounted)]
    assert [event.num_survivors for event in counted] == [num_counted] * 6
    assert not any(isinstance(event, SessionFailed) for event in told)


@pytest.mark.parametrize("evil", [answering_wrong, answering_both])
async def test_wrong_answers_of_one_client_cost_the_others_nothing(
    evil: Callable[[], httpx.AsyncBaseTransport],
    shared_server: ServerProcess,
    shared_operator: httpx.Client,
    tmp_path: Path,
) -> None:
    """S22, S31."""
    run_id, told = await federation(
        shared_operator,
        shared_server.url,
        tmp_path,
        num_clients=5,
        evil=evil(),
        secure_aggregation={"min_members": 5, "phase_seconds": 2.0},
    )
    assert read(shared_operator, f"/v1/runs/{run_id}").json()["state"] == "completed"
    assert sum(isinstance(event, UpdateCounted) for event in told) == 4
    (session,) = read(shared_operator, f"/v1/runs/{run_id}/rounds/1/sessions").json()["items"]
    assert session["state"] == "done"
    # The others' shares may be enough before the wrong ones come.
    assert len(session["blamed"]) <= (evil is answering_wrong)


async def test_an_input_that_is_garbage_ends_the_session_and_nobody_masks_that_update_again(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    """Whoever has answered is done with the round (C8): a second sum with the same update would tell it apart."""
    run_id, told = await federation(
        shared_operator,
        shared_server.url,
        tmp_path,
        num_clients=5,
        evil=sending_garbage(),
        round={"deadline_seconds": 8.0, "max_attempts": 1},
        secure_aggregation={"min_members": 5, "phase_seconds": 2.0},
    )
    assert read(shared_operator, f"/v1/runs/{run_id}").json()["state"] == "failed"
    (session,) = read(shared_operator, f"/v1/runs/{run_id}/rounds/1/sessions").json()["items"]
    assert session["abort_code"] == "range_check_failed"
    assert not any(isinstance(event, UpdateCounted) for event in told)
    assert sum(isinstance(event, TaskGivenUp) for event in told) == 4
