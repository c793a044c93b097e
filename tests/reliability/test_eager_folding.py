"""What was folded while a round collected saves time and changes nothing: not after a kill, nor in another process."""

import asyncio
import errno
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from aggregator_service.domain import batches
from aggregator_service.flow import aggregation, begun_sums, sealed_rounds
from aggregator_service.flow.eager import EagerFolding
from aggregator_service.flow.exclusion import exclude_client
from aggregator_service.storage import clients, models, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import RoundKind, RoundState
from fl_protocol.runs import RunSpec, RunState
from tests.support.participant import (
    Participant,
    create_run,
    enrol,
    pack,
    small_model,
    unpack,
    update_body,
    wait_for_run,
)
from tests.support.records import (
    client_record,
    later,
    model_record,
    round_record,
    run_record,
    store_blob,
    task_record,
    update_record,
)
from tests.support.server import ServerProcess, free_port
from tests.support.store import Store, flow_on, open_store
from tests.support.waiting import eventually
from tests.support.zygote import Zygote

NUM_BEGUN = 6
NUM_PARAMETERS = 1_100_000
QUORUM = 12
NUM_EARLY = 8


def store_collecting_round(tx: WriteTx, spec: RunSpec | None = None, **changes: Any) -> None:
    """Writes a running run whose first round has six updates of the twenty that it waits for."""
    spec = spec or RunSpec(num_rounds=3)
    runs.insert(tx, run_record(spec=spec, latest_version=0, current_round=1))
    runs.set_state(tx, run_record(), RunState.RUNNING, started_at=tx.now())
    rounds.insert(tx, round_record(quorum=20, cohort_size=20, num_updates=NUM_BEGUN, deadline_at=later(1e9), **changes))
    base = pack(small_model())
    store_blob(tx, "blob_base", base)
    models.insert(tx, model_record(num_bytes=len(base), num_parameters=len(base) // 4, blob_id="blob_base"))
    for number in range(NUM_BEGUN):
        store_update(tx, number)


def store_update(tx: WriteTx, number: int) -> None:
    clients.insert(tx, client_record(f"client_{number}"))
    tasks.insert(tx, task_record(f"task_{number}", client_id=f"client_{number}"))
    delta = small_model(seed=number + 1)
    body = update_body(delta, num_examples=number + 1)
    store_blob(tx, f"blob_{number}", body)
    record = update_record(
        f"update_{number}",
        task_id=f"task_{number}",
        client_id=f"client_{number}",
        digest=f"sha256:{number:064x}",
        blob_id=f"blob_{number}",
        num_bytes=len(body),
        num_examples=number + 1,
        weight=number + 1,
        max_abs={name: float(np.abs(values).max()) for name, values in delta.items()},
    )
    updates.insert(tx, record)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets batches of small updates be worth their cost, and none wait for more of them."""
    monkeypatch.setattr(batches, "_WORTH_A_BATCH", 0)
    monkeypatch.setattr(batches, "_AWAITED", 1 << 20)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A database with a collecting round, on each kind."""
    with open_store(database_url) as opened:
        opened.write(store_collecting_round)
        yield opened


def seal(store: Store) -> None:
    """Counts one more update and closes the round."""

    def body(tx: WriteTx) -> None:
        store_update(tx, NUM_BEGUN)
        round_ = rounds.count_updates(tx, "round_1", num_updates=1, num_examples=NUM_BEGUN + 1)
        rounds.close(tx, round_, RoundState.AGGREGATING)

    store.write(body)


async def test_what_was_begun_is_gone_on_with_to_the_same_bits(store: Store) -> None:
    flow = flow_on(store)
    with closing(EagerFolding(flow)) as eager:
        assert eager.fold_due()
        assert not eager.fold_due()
        seal(store)
        assert not eager.fold_due()
        sealed = store.read(lambda tx: sealed_rounds.load_sealed(tx, "round_1"))
        assert sealed is not None
        whole = aggregation.compute(flow, sealed)
        with eager.taken("round_1") as begun:
            assert begun is not None
            assert set(begun.members) == {f"update_{number}" for number in range(NUM_BEGUN)}
            assert aggregation.compute(flow, sealed, begun=begun).digest == whole.digest
        with eager.taken("round_1") as begun:
            assert begun is None


async def test_a_client_that_is_excluded_meanwhile_stays_counted(store: Store) -> None:
    flow = flow_on(store)
    with closing(EagerFolding(flow)) as eager:
        assert eager.fold_due()
        await exclude_client(flow, run_id="run_1", client_id="client_2", reason="a broken sensor")
        seal(store)
        sealed = store.read(lambda tx: sealed_rounds.load_sealed(tx, "round_1"))
        assert sealed is not None
        with eager.taken("round_1") as begun:
            assert begun is not None
            assert "update_2" in begun.members
            found = aggregation.compute(flow, sealed, begun=begun)
        assert found.digest == aggregation.compute(flow, sealed).digest


async def test_a_buffer_is_folded_before_the_model_that_it_moves_on_from_is_there(database_url: str) -> None:
    spec = RunSpec.model_validate({"num_rounds": 3, "round": {"kind": "buffered", "buffer_size": 20}})
    with open_store(database_url) as store:
        store.write(lambda tx: store_collecting_round(tx, spec, kind=RoundKind.BUFFERED, base_version=1, number=2))
        flow = flow_on(store)
        with closing(EagerFolding(flow)) as eager:
            assert eager.fold_due()
            with eager.taken("round_1") as begun:
                assert begun is not None
                assert len(begun.members) == NUM_BEGUN


async def test_a_batch_that_is_being_folded_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(EagerFolding(flow_on(store))) as eager:
        wrote, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        write = begun_sums.Scratch.write

        def slow_write(self: begun_sums.Scratch, first: int, values: np.ndarray) -> None:
            loop.call_soon_threadsafe(wrote.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            write(self, first, values)

        monkeypatch.setattr(begun_sums.Scratch, "write", slow_write)
        folding = asyncio.create_task(asyncio.to_thread(eager.fold_due))
        await asyncio.wait_for(wrote.wait(), 20)

        def members() -> int:
            with eager.taken("round_1") as begun:
                assert begun is not None
                return len(begun.members)

        taking = asyncio.create_task(asyncio.to_thread(members))
        await asyncio.to_thread(eventually, lambda: "round_1" not in eager._held)
        assert not taking.done()
        go_on.set()
        assert await folding
        assert await taking == NUM_BEGUN


async def test_a_full_disk_costs_the_begun_sum_and_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: begun_sums.Scratch, first: int, values: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(begun_sums.Scratch, "write", full)
    with closing(EagerFolding(flow_on(store))) as eager:
        assert not eager.fold_due()
        monkeypatch.undo()
        assert not eager.fold_due()
        with eager.taken("round_1") as begun:
            assert begun is None


async def test_the_begun_sum_of_a_round_that_was_abandoned_is_let_go(store: Store) -> None:
    with closing(EagerFolding(flow_on(store))) as eager:
        assert eager.fold_due()
        round_ = store.read(lambda tx: rounds.get(tx, "round_1"))
        assert round_ is not None
        store.write(lambda tx: rounds.close(tx, round_, RoundState.ABANDONED))
        eager.fold_due()
        with eager.taken("round_1") as begun:
            assert begun is None


async def test_a_paused_run_keeps_what_was_begun(store: Store) -> None:
    with closing(EagerFolding(flow_on(store))) as eager:
        assert eager.fold_due()
        run = store.read(lambda tx: runs.get(tx, "run_1"))
        assert run is not None
        store.write(lambda tx: runs.set_state(tx, run, RunState.PAUSED))
        assert not eager.fold_due()
        with eager.taken("round_1") as begun:
            assert begun is not None


async def test_rounds_that_do_not_add_up_in_parts_are_left_alone(database_url: str) -> None:
    with open_store(database_url) as store:
        store.write(lambda tx: store_collecting_round(tx, RunSpec.model_validate({"strategy": {"kind": "median"}})))
        with closing(EagerFolding(flow_on(store))) as eager:
            assert not eager.fold_due()


async def test_of_two_processes_one_begins_and_the_other_leaves_the_round_to_it(postgres_url: str) -> None:
    with open_store(postgres_url) as one, open_store(postgres_url) as two:
        one.write(store_collecting_round)
        with closing(EagerFolding(flow_on(one))) as first, closing(EagerFolding(flow_on(two))) as second:
            assert first.fold_due()
            assert not second.fold_due()
            first.close()
            assert second.fold_due()


def delta(number: int) -> dict[str, np.ndarray]:
    return {"w": np.full(NUM_PARAMETERS, number - 5.5, dtype=np.float32)}


def send(participants: list[Participant], run_id: str, numbers: range) -> None:
    for number in numbers:
        task_id = participants[number].claim(run_id).json()["task_id"]
        answer = participants[number].put(task_id, update_body(delta(number), num_examples=number + 1))
        assert answer.status_code == 201, answer.text


def folded_early(operator: httpx.Client) -> float:
    lines = operator.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("fedquorum_updates_folded_early_total "))


def check_model(operator: httpx.Client, run_id: str) -> None:
    weights = np.arange(1, QUORUM + 1)
    expected = np.float32(np.average(np.arange(QUORUM) - 5.5, weights=weights))
    assert np.all(unpack(wait_for_run(operator, run_id, version=1).content)["w"] == expected)


def test_rounds_of_many_are_folded_while_they_collect(servers: list[ServerProcess]) -> None:
    with servers[0].http() as operator, servers[-1].http() as other:
        model = {"w": np.zeros(NUM_PARAMETERS, dtype=np.float32)}
        run_id = create_run(operator, model, num_rounds=1, round={"quorum": QUORUM})
        participants = [enrol(other if number % 2 else operator) for number in range(QUORUM)]
        send(participants, run_id, range(NUM_EARLY))
        eventually(
            lambda: (
                folded_early(operator) + (folded_early(other) if len(servers) > 1 else 0)
                > NUM_EARLY - batches.MIN_UPDATES
            )
        )
        send(participants, run_id, range(NUM_EARLY, QUORUM))
        check_model(operator, run_id)
    assert not any('"level": "error"' in server.log for server in servers)


def test_kills_while_updates_are_folded_change_no_bit(tmp_path: Path, forking: Zygote) -> None:
    survive(f"sqlite:///{tmp_path}/fedquorum.db", tmp_path, faults=("eager.folding:2",), forking=forking)


@pytest.mark.soak
def test_many_kills_while_updates_are_folded_change_no_bit(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    survive(
        database_url, tmp_path, faults=("eager.folding:1", "eager.folding:2", "eager.folded:1") * 10, forking=forking
    )


def survive(database_url: str, folder: Path, *, faults: Sequence[str], forking: Zygote) -> None:
    """Lets a server die of each fault, and once more when the round is sealed, and looks at the model's bits."""
    server = ServerProcess(database_url, folder, port=free_port(), zygote=forking).start()
    try:
        with server.http() as operator:
            model = {"w": np.zeros(NUM_PARAMETERS, dtype=np.float32)}
            run_id = create_run(operator, model, num_rounds=1, round={"quorum": QUORUM, "deadline_seconds": 3600})
            participants = [enrol(operator) for _ in range(QUORUM)]
            send(participants, run_id, range(NUM_EARLY))
            for fault in faults:
                server.kill()
                server.begin(FEDQUORUM_FAILPOINT=f"{fault}:kill")
                assert server.wait(30) == -9
            server.start(FEDQUORUM_FAILPOINT="aggregation.halfway:2:kill")
            eventually(lambda: folded_early(operator) == NUM_EARLY)
            send(participants, run_id, range(NUM_EARLY, QUORUM))
            assert server.wait(30) == -9
            server.start()
            check_model(operator, run_id)
        assert '"level": "error"' not in server.log, server.log[-4000:]
    finally:
        server.kill()
