"""A server optimizer's memory is stored with the model it belongs to: kills change no bit, a wrong one ends the run."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray

from tests.support.chaos import KillAt, carry_out, taking_part
from tests.support.ledger import NUM_CLIENTS, WEIGHTS, Ledger, body_of, delta_of, initial_model
from tests.support.participant import create_run, enrol, unpack, wait_for_run
from tests.support.server import ServerProcess, free_port
from tests.support.stored import with_driver
from tests.support.waiting import eventually
from tests.support.zygote import Zygote

Float64 = NDArray[np.float64]

NUM_ROUNDS = 4
ROUNDS = {"quorum": NUM_CLIENTS, "deadline_seconds": 3600}
ADAM = {"kind": "adam", "schedule": {"kind": "cosine", "num_rounds": NUM_ROUNDS, "warmup_rounds": 1}}
NESTEROV = {"momentum": 0.9, "nesterov": True, "schedule": {"kind": "step", "every": 2, "factor": 0.3}}
PLAN = [
    KillAt("aggregation.model_written", 1),
    KillAt("publication.after_commit", 1),
    KillAt("publication.in_transaction", 1),
    KillAt("publication.after_commit", 1),
]
"""Two kills of round 1 and two of round 2, of which the second lets the round be published."""


def adam_steps(deltas: list[Float64]) -> Iterator[Float64]:
    """Gives the steps of FedAdam's recursion with the defaults and ADAM's schedule, in float64."""
    m, v = np.zeros_like(deltas[0]), np.full_like(deltas[0], 1e-6)
    for number, delta in enumerate(deltas, start=1):
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        factor = 0.5 if number == 1 else (1 + math.cos(math.pi * (number - 2) / (NUM_ROUNDS - 1))) / 2
        yield 0.01 * factor * m / (np.sqrt(v) + 1e-3)


def nesterov_steps(deltas: list[Float64]) -> Iterator[Float64]:
    """Gives the steps of Nesterov's momentum with NESTEROV's schedule, in float64."""
    velocity = np.zeros_like(deltas[0])
    for number, delta in enumerate(deltas, start=1):
        velocity = 0.9 * velocity + delta
        yield 0.3 ** ((number - 1) // 2) * (delta + 0.9 * velocity)


def mean_delta(round_number: int) -> Float64:
    """Gives the weighted mean of what all clients send in a round; it is exact (see the ledger)."""
    return np.average([delta_of(client, round_number) for client in range(NUM_CLIENTS)], axis=0, weights=WEIGHTS)


def models(operator: httpx.Client, run_id: str) -> list[bytes]:
    """Downloads each version of a finished run's model."""
    return [operator.get(f"/v1/runs/{run_id}/models/{version}").content for version in range(NUM_ROUNDS + 1)]


def undisturbed(operator: httpx.Client, optimizer: dict[str, Any]) -> list[bytes]:
    """Gives the models of a run without kills."""
    run_id = create_run(operator, initial_model(), num_rounds=NUM_ROUNDS, round=ROUNDS, server_optimizer=optimizer)
    with taking_part(operator, run_id, Ledger()) as (_, jobs):
        pass
    assert {job.result() for job in jobs} == {NUM_ROUNDS}
    return models(operator, run_id)


@pytest.mark.parametrize(
    ("database_url", "optimizer", "steps"),
    [("sqlite", ADAM, adam_steps), ("postgres", NESTEROV, nesterov_steps)],
    ids=["sqlite-adam", "postgres-nesterov"],
    indirect=["database_url"],
)
def test_a_killed_run_has_the_models_of_one_without_kills(
    database_url: str,
    tmp_path: Path,
    forking: Zygote,
    optimizer: dict[str, Any],
    steps: Callable[[list[Float64]], Iterator[Float64]],
) -> None:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking).start()
    try:
        with server.http() as operator:
            expected = undisturbed(operator, optimizer)
            run_id = create_run(
                operator, initial_model(), num_rounds=NUM_ROUNDS, round=ROUNDS, server_optimizer=optimizer
            )
            with taking_part(operator, run_id, Ledger()) as (_, jobs):
                server.kill()
                carry_out(server, PLAN, forking=forking, jobs=jobs)
                server.start()
            assert {job.result() for job in jobs} == {NUM_ROUNDS}
            assert models(operator, run_id) == expected
    finally:
        server.kill()
    tensors = [unpack(body)["seen"] for body in expected]
    deltas = [mean_delta(number) for number in range(1, NUM_ROUNDS + 1)]
    for (before, after), step in zip(itertools.pairwise(tensors), steps(deltas), strict=True):
        np.testing.assert_array_max_ulp(after, (before + step).astype(np.float32), maxulp=1)


def test_a_state_that_another_optimizer_left_ends_the_run_by_name(server: ServerProcess) -> None:
    with server.http() as operator:
        optimizer = {"kind": "yogi"}
        run_id = create_run(operator, initial_model(), round={"quorum": 1}, server_optimizer=optimizer)
        participant = enrol(operator)
        participant.put(participant.claim(run_id).json()["task_id"], body_of(0, 1))
        wait_for_run(operator, run_id, version=1)
        replace_state(server.database_url, run_id)
        participant.put(participant.claim(run_id).json()["task_id"], body_of(0, 2))
        eventually(lambda: operator.get(f"/v1/runs/{run_id}").json()["state"] == "failed")
        reason = operator.get(f"/v1/runs/{run_id}").json()["reason"]
    assert reason == (
        "round 2 cannot be aggregated: the stored optimizer state does not belong to yogi: it is of kind None"
    )


def replace_state(database_url: str, run_id: str) -> None:
    """Says of version 1 that its model's own bytes are its optimizer's state."""
    engine = sa.create_engine(with_driver(database_url), poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        changed = connection.execute(
            sa.text("UPDATE models SET optimizer_blob_id = blob_id WHERE run_id = :run_id AND version = 1"),
            {"run_id": run_id},
        )
        assert changed.rowcount == 1
