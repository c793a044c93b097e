"""SIGKILL while a policy removes what is old: nothing stays half removed, no file is forgotten, no bit changes."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.reliability.test_kills import undisturbed
from tests.support.chaos import KillAt, carry_out, taking_part
from tests.support.ledger import NUM_CLIENTS, Ledger, initial_model
from tests.support.participant import create_run
from tests.support.server import ServerProcess, free_port
from tests.support.waiting import eventually
from tests.support.zygote import Zygote

PLAN = [KillAt("retention.in_transaction", 1), KillAt("retention.after_commit", 1), KillAt("blobs.bytes_removed", 1)]
RETENTION = {"updates": {"kind": "until_published"}, "models": {"kind": "newest", "count": 2}}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_kills_amid_removals_forget_no_file_and_change_no_bit(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    folder = tmp_path / "blobs"
    environment = {"FEDQUORUM_BLOB_STORE": f"file://{folder}"}
    server = ServerProcess(database_url, tmp_path, environment, port=free_port(), zygote=forking).start()
    try:
        with server.http() as operator:
            rounds = {"quorum": NUM_CLIENTS, "deadline_seconds": 3600}
            run_id = create_run(operator, initial_model(), num_rounds=100_000, round=rounds, retention=RETENTION)
            with taking_part(operator, run_id, Ledger()) as (clients, jobs):
                server.kill()
                carry_out(server, PLAN, forking=forking, jobs=jobs)
                server.start()
                last_round = operator.get(f"/v1/runs/{run_id}").json()["current_round"] + 2
                for client in clients:
                    client.last_round = last_round
                assert {job.result() for job in jobs} == {last_round}
            # Of the two models that stay, the initial one and the updates of no round, these are the files.
            eventually(lambda: len(files(folder)) == 3)
            assert files(folder) == named(database_url)
            versions = operator.get(f"/v1/runs/{run_id}/models", params={"limit": 1000}).json()["items"]
            kept = [version["version"] for version in versions if version["removed_at"] is None]
            assert kept == [0, last_round - 1, last_round]
            digests = [version["digest"] for version in versions]
            assert digests == undisturbed(operator, num_rounds=last_round)
        assert '"level": "error"' not in server.log, server.log[-4000:]
    finally:
        server.kill()


def files(folder: Path) -> set[str]:
    """Names the files of a store; those that stand ready for blobs to come are empty."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 0}


def named(database_url: str) -> set[str]:
    """Names the blobs whose rows say that their bytes are there."""
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
        return {
            blob_id
            for (blob_id,) in connection.execute("SELECT blob_id FROM blobs WHERE sealed AND store LIKE 'file:%'")
        }
