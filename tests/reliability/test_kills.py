"""SIGKILL at any instant, again and again: nothing acknowledged is lost or counted twice, and the bits are the same."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from aggregator_service import failpoints
from tests.support.chaos import (
    Fault,
    KillAfter,
    KillAt,
    carry_out,
    check_files_are_blobs,
    check_nothing_is_left_over,
    taking_part,
)
from tests.support.ledger import NUM_CLIENTS, Ledger, check_run, initial_model
from tests.support.object_server import BUCKET, ObjectServer
from tests.support.participant import create_run, wait_for_run
from tests.support.server import ServerProcess, free_port
from tests.support.zygote import Zygote

SEED = 20_260_801
LARGE = 1_100_000
"""Parameters of a model whose bytes are written ahead of the transaction that names them (more than 4 MiB)."""

_ONCE_A_ROUND = (
    "aggregation.started",
    "aggregation.model_written",
    "publication.in_transaction",
    "publication.after_commit",
)
_NEEDS_LARGE = ("intake.chunks_stored",)
_OF_DECISIONS = (
    "evaluation.in_transaction",
    "evaluation.after_commit",
    "rollback.in_transaction",
    "rollback.after_commit",
)
"""Points that these runs never pass; test_decision_kills.py has a plan for them."""
_OF_FILES = ("blobs.begun", "blobs.bytes_written", "blobs.bytes_removed")
"""Points that only blobs outside the database pass."""
_OF_MASKED_RUNS = tuple(name for name in failpoints.NAMES if name.startswith(("session.", "helper.")))
"""Points that only masked runs pass; test_session_kills.py and test_helper_kills.py have plans for them."""
_OF_LARGE_ROUNDS = tuple(name for name in failpoints.NAMES if name.startswith("eager."))
"""Points that rounds of so few clients never pass; test_eager_folding.py has a plan for them."""
_OF_POLICIES = tuple(name for name in failpoints.NAMES if name.startswith("retention."))
"""Points that runs pass which do not keep everything; test_retention.py has a plan for them."""
_OF_PARTS = tuple(name for name in failpoints.NAMES if name.startswith("uploads."))
"""Points that bodies pass which come in parts; test_upload_kills.py has a plan for them."""
_OF_OTHER_RUNS = (*_OF_DECISIONS, *_OF_FILES, *_OF_POLICIES, *_OF_MASKED_RUNS, *_OF_LARGE_ROUNDS, *_OF_PARTS)


def small_plan(num_random: int, num_cold: int) -> list[Fault]:
    """Plans the kills of a run of many small rounds: each named point at several of its passes, and random instants."""
    source = random.Random(SEED)
    plan: list[Fault] = [
        KillAt(name, nth)
        for name in failpoints.NAMES
        if name not in (*_NEEDS_LARGE, *_OF_OTHER_RUNS)
        for nth in ((1, 2) if name in _ONCE_A_ROUND else (1, 3, 7))
    ]
    plan += [KillAfter(source.uniform(0.0, 0.4)) for _ in range(num_random)]
    plan += [KillAfter(source.uniform(0.2, 2.0), cold=True) for _ in range(num_cold)]
    source.shuffle(plan)
    return plan


def large_plan(num_random: int) -> list[Fault]:
    """Plans the kills of a run whose uploads and candidate models span several transactions."""
    source = random.Random(SEED + 1)
    plan: list[Fault] = [KillAt("intake.chunks_stored", nth) for nth in (1, 2, 4)]
    plan += [KillAt("aggregation.halfway", nth) for nth in (1, 2, 3)]
    plan += [KillAt(name, 1) for name in ("intake.received", "intake.before_commit", "intake.after_commit")]
    plan += [KillAt(name, 1) for name in _ONCE_A_ROUND]
    plan += [KillAfter(source.uniform(0.0, 0.8)) for _ in range(num_random)]
    source.shuffle(plan)
    return plan


def files_plan(num_random: int, *, database_url: str) -> list[Fault]:
    """Plans the kills of a run whose blobs are files: whatever one leaves behind, the next start removes on SQLite."""
    source = random.Random(SEED + 2)
    # The start after an update that was not committed sweeps its file, and is killed at that.
    swept = ("blobs.bytes_removed",) if database_url.startswith("sqlite") else ()
    points = (*_OF_FILES[:2], "intake.before_commit", *swept, "intake.after_commit", "aggregation.model_written")
    plan: list[Fault] = [KillAt(name, 1) for name in points]
    plan += [KillAfter(source.uniform(0.0, 0.4)) for _ in range(num_random)]
    return [*plan, KillAt("blobs.bytes_written", 4)]


SMALL_PLAN = small_plan(num_random=20, num_cold=3)
LARGE_PLAN = large_plan(num_random=5)


def test_every_named_point_is_killed_at_at_least_twice_in_60_kills() -> None:
    runs = Counter(fault.failpoint for fault in (*SMALL_PLAN, *LARGE_PLAN) if isinstance(fault, KillAt))
    assert set(runs) == set(failpoints.NAMES) - set(_OF_OTHER_RUNS)
    assert min(runs.values()) >= 2
    assert len(SMALL_PLAN) + len(LARGE_PLAN) >= 60


def test_every_point_in_the_source_has_a_name_and_every_name_a_point() -> None:
    package = Path(failpoints.__file__).parent
    reached = [
        name
        for source in package.rglob("*.py")
        for name in re.findall(r"failpoints\.reach\(\s*\"([^\"]+)\"", source.read_text())
    ]
    calls = sum(source.read_text().count("failpoints.reach(") for source in package.rglob("*.py"))
    assert calls == len(reached), "a failpoint's name must be a plain string, so that this test can read it"
    assert set(reached) == set(failpoints.NAMES)


def test_kills_lose_nothing_and_change_no_bit(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    survive(database_url, tmp_path, plan=SMALL_PLAN, forking=forking)


def test_kills_amid_large_uploads_and_models_lose_nothing(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    survive(database_url, tmp_path, plan=LARGE_PLAN, forking=forking, num_padding=LARGE)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_kills_with_blobs_in_files_lose_nothing_and_leave_no_file(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    folder = tmp_path / "blobs"
    survive(
        database_url,
        tmp_path,
        plan=files_plan(num_random=1, database_url=database_url),
        forking=forking,
        FEDQUORUM_BLOB_STORE=f"file://{folder}",
    )
    check_files_are_blobs(database_url, folder)


@pytest.mark.soak
@pytest.mark.parametrize("num_padding", [0, LARGE])
def test_many_kills_with_blobs_in_files_lose_nothing_and_leave_no_file(
    database_url: str, tmp_path: Path, forking: Zygote, num_padding: int
) -> None:
    folder = tmp_path / "blobs"
    store = f"file://{folder}"
    plan = files_plan(num_random=15, database_url=database_url)
    survive(database_url, tmp_path, plan=plan, forking=forking, num_padding=num_padding, FEDQUORUM_BLOB_STORE=store)
    check_files_are_blobs(database_url, folder)


@pytest.mark.soak
def test_kills_with_blobs_in_objects_lose_nothing(
    database_url: str, tmp_path: Path, forking: Zygote, objects: ObjectServer
) -> None:
    store = {"FEDQUORUM_BLOB_STORE": f"s3://{BUCKET}/{tmp_path.name.replace('_', '-')}"}
    survive(
        database_url,
        tmp_path,
        plan=files_plan(num_random=3, database_url=database_url),
        forking=forking,
        **objects.environment,
        **store,
    )


@pytest.mark.soak
def test_500_kills_lose_nothing_and_change_no_bit(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    survive(database_url, tmp_path, plan=small_plan(num_random=450, num_cold=30), forking=forking)


def survive(
    database_url: str, folder: Path, *, plan: Sequence[Fault], forking: Zygote, num_padding: int = 0, **environment: str
) -> None:
    """Lets a server die by a plan during a run, then holds the run against its ledger and against one without kills."""
    server = ServerProcess(database_url, folder, environment, port=free_port(), zygote=forking).start()
    ledger = Ledger()
    try:
        with server.http() as operator:
            rounds = {"quorum": NUM_CLIENTS, "deadline_seconds": 3600}
            run_id = create_run(operator, initial_model(num_padding), num_rounds=100_000, round=rounds)
            with taking_part(operator, run_id, ledger, num_padding=num_padding) as (clients, jobs):
                server.kill()
                carry_out(server, plan, forking=forking, jobs=jobs)
                server.zygote = forking
                server.start()
                last_round = operator.get(f"/v1/runs/{run_id}").json()["current_round"] + 2
                for client in clients:
                    client.last_round = last_round
                assert {job.result() for job in jobs} == {last_round}
            wait_for_run(operator, run_id, version=last_round)
            participants = [client.participant.client_id for client in clients]
            digests = check_run(operator, run_id, ledger, participants=participants)
            assert len(digests) == last_round + 1
            assert sum(client.num_replays for client in clients) > 0
            if not num_padding:
                assert digests == undisturbed(operator, num_rounds=last_round)
        assert '"level": "error"' not in server.log, server.log[-4000:]
        check_nothing_is_left_over(database_url)
    finally:
        server.kill()


def undisturbed(operator: httpx.Client, *, num_rounds: int) -> list[str]:
    """Gives the digests of the models of the same run without kills."""
    run_id = create_run(operator, initial_model(), num_rounds=num_rounds, round={"quorum": NUM_CLIENTS})
    with taking_part(operator, run_id, Ledger()) as (_, jobs):
        pass
    assert {job.result() for job in jobs} == {num_rounds}
    models = operator.get(f"/v1/runs/{run_id}/models", params={"limit": 1000}).json()
    assert models["next_cursor"] is None
    return [model["digest"] for model in models["items"]]
