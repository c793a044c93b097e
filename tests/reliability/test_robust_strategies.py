"""Rounds of every robust strategy on one server that is killed in the middle of them: the models are the right bits."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from aggregator_service.flow.fold import SealedUpdate, aggregate
from fl_protocol.runs import RunSpec
from tests.support.chaos import PATIENCE_SECONDS, KillAt, carry_out
from tests.support.databases import POSTGRES_IN_SOAK
from tests.support.participant import Participant, create_run, enrol, pack, unpack, update_body, wait_for_run
from tests.support.server import ServerProcess, free_port
from tests.support.zygote import Zygote

NUM_CLIENTS = 7
SHAPE = (40, 6)
STRATEGIES: dict[str, dict[str, Any]] = {
    "median": {},
    "trimmed_mean": {"trim_fraction": 0.3},
    "krum": {"num_byzantine": 1},
    "multi_krum": {"num_byzantine": 1, "num_selected": 3},
    "bulyan": {"num_byzantine": 1},
    "geometric_median": {},
}
PLAN = [
    KillAt("aggregation.halfway", 2),
    KillAt("aggregation.model_written", 3),
    KillAt("publication.in_transaction", 2),
    KillAt("publication.after_commit", 1),
]
"""After them at most five of the six rounds can have been published."""


def spec_of(kind: str) -> dict[str, Any]:
    """Declares a run; updates longer than 15, of which there are two, are clipped."""
    clip = {"kind": "clip", "norm": 15.0}
    return {
        "num_rounds": 1,
        "round": {"quorum": NUM_CLIENTS, "deadline_seconds": 3600},
        "strategy": {"kind": kind, "max_update_norm": clip} | STRATEGIES[kind],
    }


def delta_of(number: int) -> NDArray[np.float32]:
    """Gives what a client sends; the last two are far off, and the others not so far that they would be clipped."""
    values = np.random.default_rng(number).uniform(-1, 1, size=SHAPE)
    return (values * (1 if number < NUM_CLIENTS - 2 else -50)).astype(np.float32)


def body_of(number: int) -> bytes:
    """Writes an update."""
    return update_body({"w": delta_of(number)}, num_examples=number + 1)


def folded(kind: str) -> bytes:
    """Folds the updates here, in another order than they arrive in."""
    weighs = kind == "geometric_median"
    updates = []
    for number in reversed(range(NUM_CLIENTS)):
        body = body_of(number)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        max_abs = {"w": float(np.abs(delta_of(number)).max())}
        weight = number + 1 if weighs else 1
        updates.append(SealedUpdate(str(number), digest, weight, max_abs, partial(_piece, body)))
    model, state = bytearray(), bytearray()
    aggregate(
        partial(_piece, pack({"w": np.zeros(SHAPE, dtype=np.float32)})),
        updates,
        spec=RunSpec.model_validate(spec_of(kind)),
        round_number=1,
        optimizer_state=None,
        write_model=model.extend,
        write_state=state.extend,
    )
    return bytes(model)


def _piece(blob: bytes, begin: int, end: int) -> memoryview:
    return memoryview(blob)[begin:end]


def expected_median() -> NDArray[np.float32]:
    """Gives the median of the clipped updates, in float64 and rounded once."""
    rows = np.array([delta_of(number).astype(np.float64) for number in range(NUM_CLIENTS)])
    norms = np.sqrt((rows**2).sum(axis=(1, 2), keepdims=True))
    return np.median(rows * np.minimum(1, 15 / norms), axis=0).astype(np.float32)


def until_answered(put: Callable[[], httpx.Response]) -> int:
    """Repeats a put while the server is down, as a client may; gives the status."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return put().status_code
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@POSTGRES_IN_SOAK
def test_a_round_of_each_robust_strategy_survives_kills_in_the_middle_of_it(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking).start()
    try:
        with server.http() as operator, ThreadPoolExecutor(len(STRATEGIES)) as pool:
            clients = [enrol(operator, f"client-{number}") for number in range(NUM_CLIENTS)]
            model = {"w": np.zeros(SHAPE, dtype=np.float32)}
            run_ids = {kind: create_run(operator, model, **spec_of(kind)) for kind in STRATEGIES}
            last = [_send_all_but_last(clients, run_id) for run_id in run_ids.values()]
            server.kill()
            jobs: list[Future[int]] = [pool.submit(until_answered, put) for put in last]
            carry_out(server, PLAN, forking=forking, jobs=jobs)
            server.start()
            assert {job.result() for job in jobs} <= {200, 201}
            found = {kind: wait_for_run(operator, run_id, version=1).content for kind, run_id in run_ids.items()}
    finally:
        server.kill()
    assert found == {kind: folded(kind) for kind in STRATEGIES}
    np.testing.assert_allclose(unpack(found["median"])["w"], expected_median(), rtol=1e-6)


def _send_all_but_last(clients: list[Participant], run_id: str) -> Callable[[], httpx.Response]:
    """Sends the updates of all clients but the last, and gives what sends that one and closes the round."""
    tasks = [client.claim(run_id).json()["task_id"] for client in clients]
    *others, last = zip(range(NUM_CLIENTS), clients, tasks, strict=True)
    for number, client, task in others:
        assert client.put(task, body_of(number)).status_code == 201
    number, client, task = last
    return partial(client.put, task, body_of(number))
