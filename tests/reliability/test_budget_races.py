"""Many openings at once against a budget that is nearly spent: what is affordable is reserved, and nothing beyond."""

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aggregator_service.domain.records import RunRecord
from aggregator_service.flow import budget
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.storage import clients, ledger, models, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.privacy.accounting import epsilon_spent
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunSpec, RunState
from tests.support.participant import Participant, Tensors, create_run, update_body, wait_for_run
from tests.support.racing import at_once, spread
from tests.support.records import (
    client_record,
    model_record,
    run_record,
    store_blob,
    task_record,
    update_record,
)
from tests.support.server import ServerProcess
from tests.support.store import Store, flow_on, open_store
from tests.support.vault import Vault, states

NUM_OPENERS = 50
AFFORDABLE = 2


def spec_of(target_epsilon: float) -> RunSpec:
    privacy = {"kind": "central_gaussian", "target_epsilon": target_epsilon, "delta": 1e-5, "noise_multiplier": 1.0}
    return RunSpec.model_validate(
        {"num_rounds": 100, "round": {"quorum": 1}, "strategy": {"weighting": "uniform"}, "privacy": privacy}
    )


EXACT = epsilon_spent(spec_of(8.0), num_participations=AFFORDABLE, num_rounds=AFFORDABLE)
"""What two rounds cost a client that takes part in both, to the last bit."""


@pytest.fixture(params=["sqlite", "postgres", "five-servers-on-postgres"])
def stores(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[list[Store]]:
    """What so many server processes would have of one database."""
    url = f"sqlite:///{tmp_path}/fedquorum.db"
    if request.param != "sqlite":
        url = request.getfixturevalue("postgres_url")
    with ExitStack() as stack:
        yield [stack.enter_context(open_store(url)) for _ in range(5 if request.param.startswith("five") else 1)]


def begin(tx: WriteTx, spec: RunSpec) -> None:
    """Writes a running private run without a round, and a client."""
    runs.insert(tx, run_record(spec=spec))
    runs.set_state(tx, run_record(), RunState.RUNNING, started_at=tx.now())
    runs.set_progress(tx, "run_1", current_round=0, latest_version=0)
    clients.insert(tx, client_record())
    store_blob(tx)
    models.insert(tx, model_record())


def running(tx: WriteTx) -> RunRecord | None:
    run = runs.lock(tx, "run_1")
    return run if run is not None and run.state is RunState.RUNNING else None


def open_next(flow: Flow, tx: WriteTx) -> None:
    """Does what a publication, a start, a resumption or a passed deadline does at its end."""
    run = running(tx)
    if run is not None:
        round_steps.advance(flow, tx, run)


def publish(flow: Flow, tx: WriteTx) -> None:
    """Lets the client answer the round that collects, if one does, and charges its model."""
    run, round_ = running(tx), rounds.newest(tx, "run_1")
    if run is None or round_ is None or round_.state is not RoundState.COLLECTING:
        return
    name, version = f"{round_.number}", (run.latest_version or 0) + 1
    tasks.insert(tx, task_record(f"task_{name}", round_id=round_.round_id))
    store_blob(tx, f"blob_of_{name}")
    updates.insert(
        tx,
        update_record(f"update_{name}", task_id=f"task_{name}", round_id=round_.round_id, blob_id=f"blob_of_{name}"),
    )
    counted = rounds.count_updates(tx, round_.round_id, num_updates=1, num_examples=1)
    round_steps.close_if_due(flow, tx, run=run, round_=counted)
    assert rounds.complete(tx, round_.round_id, result_version=version, metrics={}, evaluation_deadline_at=None)
    digest = f"sha256:{version:064x}"
    epsilon = budget.spend(tx, run, counted, noise=None, model_digest=digest)
    assert epsilon is not None
    rounds.set_epsilon(tx, round_.round_id, epsilon)
    models.insert(tx, replace(model_record(version), digest=digest))
    runs.set_progress(tx, "run_1", current_round=round_.number, latest_version=version)


@pytest.mark.parametrize(
    ("target_epsilon", "affordable"),
    [(EXACT, AFFORDABLE), (math.nextafter(EXACT, 0), AFFORDABLE - 1)],
    ids=["exactly-enough", "one-bit-too-little"],
)
async def test_of_fifty_openings_at_once_only_what_is_affordable_is_reserved(
    stores: list[Store], target_epsilon: float, affordable: int
) -> None:
    stores[0].write(lambda tx: begin(tx, spec_of(target_epsilon)))
    flows = [flow_on(store) for store in stores]

    def take_turns(number: int, barrier: threading.Barrier) -> None:
        store, flow = stores[number % len(stores)], flows[number % len(stores)]
        for _ in range(AFFORDABLE + 1):
            barrier.wait()
            store.write(lambda tx: open_next(flow, tx))
            barrier.wait()
            store.write(lambda tx: publish(flow, tx))

    await asyncio.to_thread(at_once, take_turns, range(NUM_OPENERS))
    database = stores[0].transactions.database
    entries = stores[0].read(lambda tx: ledger.page(tx, "run_1", after_sequence=0, limit=1000))
    assert [(entry.round, entry.state.value) for entry in entries] == [
        (number, state) for number in range(1, affordable + 1) for state in ("reserved", "spent")
    ]
    assert max(entry.charge.epsilon for entry in entries) <= target_epsilon
    run = stores[0].read(lambda tx: runs.get(tx, "run_1"))
    assert run is not None
    assert (run.state, run.latest_version) == (RunState.COMPLETED, affordable)
    assert "the privacy budget is exhausted" in str(run.reason)
    ledger.verify_all(database)


async def test_the_boundary_is_the_budget_itself(stores: list[Store]) -> None:
    store, run = stores[0], run_record(spec=spec_of(EXACT))
    store.write(lambda tx: begin(tx, run.spec))
    flow = flow_on(store)
    for _ in range(AFFORDABLE - 1):
        store.write(lambda tx: open_next(flow, tx))
        store.write(lambda tx: publish(flow, tx))
    charge = store.read(lambda tx: budget.next_charge(tx, run))
    assert charge is not None
    assert charge.epsilon == EXACT
    assert budget.refusal(run, charge) is None
    beyond = replace(charge, epsilon=math.nextafter(EXACT, math.inf))
    assert "the privacy budget is exhausted" in str(budget.refusal(run, beyond))
    assert budget.refusal(run, replace(charge, epsilon=math.inf)) is not None


def test_servers_that_steer_one_run_at_once_spend_its_budget_once(servers: list[ServerProcess]) -> None:
    """Fifty starts, then rollbacks, then clients that race through what is left."""
    with servers[0].http() as operator:
        spec = spec_of(8.0).model_dump(mode="json") | {
            "round": {"quorum": 3, "cohort_size": 6, "deadline_seconds": 3600}
        }
        model: Tensors = {"w": np.zeros(8, dtype=np.float32)}
        run_id = create_run(operator, model, start=False, **spec)
    racers = spread(servers, 6)

    def steer(number: int, barrier: threading.Barrier) -> int:
        with servers[number % len(servers)].http() as http:
            barrier.wait()
            return http.post(f"/v1/runs/{run_id}/start").status_code

    assert Counter(at_once(steer, range(NUM_OPENERS))) == {200: NUM_OPENERS}
    vault = Vault(servers[0].database_url)
    assert states(vault.entries(run_id)) == [(1, 1, "reserved")]

    def go_back(number: int, barrier: threading.Barrier) -> int:
        with servers[number % len(servers)].http() as http:
            barrier.wait()
            return http.post(f"/v1/runs/{run_id}/rollback", json={"version": 0}).status_code

    assert Counter(at_once(go_back, range(10))) == {201: 10}
    entries = states(vault.entries(run_id))
    assert Counter(state for _, _, state in entries) == {"reserved": 11, "void": 10}
    body = update_body({"w": np.zeros(8, dtype=np.float32)}, num_examples=1)

    def take_part(client: Participant, barrier: threading.Barrier) -> int:
        barrier.wait()
        return client.take_part(run_id, lambda _task, _model: body, wait=5)

    at_once(take_part, racers)
    with servers[0].http() as operator:
        run = operator.get(f"/v1/runs/{run_id}").json()
        wait_for_run(operator, run_id, version=run["latest_version"])
    spent = [entry for entry in vault.entries(run_id) if entry["state"] == "spent"]
    most = max(entry["charge"]["num_participations"] for entry in spent)
    # Who took part how often is up to the race: the run ends when one client could not afford another round.
    assert most == AFFORDABLE
    assert spent[-1]["charge"]["epsilon"] == pytest.approx(EXACT, rel=1e-12)
    assert len(spent) in range(AFFORDABLE, 2 * AFFORDABLE + 1)
    assert run["state"] == "completed"
    assert "the privacy budget is exhausted" in run["reason"]
    vault.check_charged(run_id)
    vault.check_nothing_secret_is_left()
