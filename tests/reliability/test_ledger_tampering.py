"""A ledger that was changed is noticed: by the database, by the next start, by the clients that saw more of it."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from client_sdk import PrivacyClaimError, PrivacyPolicy, TrainedModel, TrainingTask, participate_blocking
from tests.support.participant import Tensors, create_run, enrol, update_body, wait_for_run
from tests.support.server import ServerProcess
from tests.support.vault import Vault
from tests.support.waiting import eventually
from tests.support.zygote import Zygote

TINY: Tensors = {"w": np.zeros(4, dtype=np.float32)}
PRIVATE = {
    "round": {"quorum": 1, "deadline_seconds": 3600},
    "strategy": {"weighting": "uniform"},
    "privacy": {"kind": "central_gaussian", "target_epsilon": 8.0, "delta": 1e-6},
}
_ROW = (
    "INSERT INTO privacy_ledger (run_id, sequence, round_id, state, entry, entry_hash) "
    "VALUES (:run_id, :sequence, :round_id, :state, :entry, :entry_hash)"
)


def train_rounds(operator: httpx.Client, num_rounds: int) -> str:
    """Runs so many rounds of a private run that goes on."""
    run_id = create_run(operator, TINY, num_rounds=num_rounds + 1, **PRIVATE)
    client = enrol(operator)
    for version in range(1, num_rounds + 1):
        task = client.claim(run_id, wait=20).json()
        assert client.put(task["task_id"], update_body(TINY, num_examples=1)).status_code == 201
        wait_for_run(operator, run_id, version=version)
    return run_id


class Attacker:
    """Whoever owns the database: without its triggers, it changes what it likes and puts it back again."""

    def __init__(self, vault: Vault, run_id: str) -> None:
        self.vault, self.run_id = vault, run_id
        rows = vault.rows("SELECT * FROM privacy_ledger WHERE run_id = :run_id ORDER BY sequence", run_id=run_id)
        self.rows = [dict(row._mapping) for row in rows]
        ((self.spec,),) = vault.rows("SELECT CAST(spec AS TEXT) FROM runs WHERE run_id = :run_id", run_id=run_id)

    def write(self, rows: Sequence[dict[str, Any]], spec: str | None = None, epsilons: str = "epsilon") -> None:
        """Makes a run's ledger these rows, and more."""
        cast = "CAST(:spec AS JSON)" if self.vault.database_url.startswith("postgresql") else ":spec"
        self.vault.change("DELETE FROM privacy_ledger WHERE run_id = :run_id", run_id=self.run_id)
        for row in rows:
            self.vault.change(_ROW, **row)
        changed = f"UPDATE runs SET spec = {cast} WHERE run_id = :run_id"
        self.vault.change(changed, run_id=self.run_id, spec=spec or self.spec)
        self.vault.change(f"UPDATE rounds SET epsilon = {epsilons} WHERE epsilon IS NOT NULL")

    def edited(self, at: int, **changes: Any) -> list[dict[str, Any]]:
        """Gives the rows with some fields of one entry's text, and its hash, made other ones."""
        row = self.rows[at]
        text = json.dumps(json.loads(row["entry"]) | changes, sort_keys=True, separators=(",", ":"))
        forged = hashlib.sha256(b"fedquorum/ledger/v1\0" + text.encode()).hexdigest()
        return [*self.rows[:at], row | {"entry": text, "entry_hash": forged}, *self.rows[at + 1 :]]


def cheaper(row: dict[str, Any]) -> dict[str, Any]:
    charge = json.loads(row["entry"])["charge"]
    return {"charge": charge | {"epsilon": charge["epsilon"] / 2}}


# What is done, and what the one line says of it; the ledger has five entries: two rounds and an open one.
TAMPERINGS: dict[str, tuple[Callable[[Attacker], None], str]] = {
    "a text": (lambda a: a.write([*a.rows[:1], {**a.rows[1], "entry": a.rows[1]["entry"].replace("8", "7")},
                                  *a.rows[2:]]), "entry 2 of the privacy ledger of run {run} was changed"),
    "a text with its hash": (lambda a: a.write(a.edited(1, **cheaper(a.rows[1]))),
                             "entry 3 of the privacy ledger of run {run} does not follow"),
    "the last charge with its hash": (lambda a: a.write(a.edited(3, **cheaper(a.rows[3]))[:4]),
                                      "the privacy ledger of run {run} does not charge what was published"),
    "a text that cannot be read": (lambda a: a.write([*a.rows[:4], {**a.rows[4], "entry": "{}"}]),
                                   "entry 5 of the privacy ledger of run {run} was changed"),
    "a state alone": (lambda a: a.write([*a.rows[:3], {**a.rows[3], "state": "void"}, *a.rows[4:]]),
                      "entry 4 of the privacy ledger of run {run} was changed"),
    "the tail": (lambda a: a.write(a.rows[:3]), "the privacy ledger of run {run} does not charge what was published"),
    "an entry within": (lambda a: a.write([*a.rows[:2], *a.rows[3:]]), "entry 3 of the privacy ledger of run {run}"),
    "everything": (lambda a: a.write([]), "the privacy ledger of run {run} does not charge what was published"),
    "what a round is said to have cost": (lambda a: a.write(a.rows, epsilons="epsilon / 2"),
                                          "the privacy ledger of run {run} does not charge what was published"),
    "the run's privacy": (lambda a: a.write(a.rows, a.spec.replace('"target_epsilon": 8.0', '"target_epsilon": 80.0')),
                          "entry 1 of the privacy ledger of run {run} does not follow the one before it: an entry, or"),
}  # fmt: skip


def test_a_start_notices_whatever_was_changed_in_a_ledger(server: ServerProcess, operator: httpx.Client) -> None:
    run_id = train_rounds(operator, 2)
    vault = Vault(server.database_url)
    eventually(lambda: len(vault.entries(run_id)) == 5)
    assert server.stop() == 0
    attacker = Attacker(vault, run_id)
    vault.disarm()
    for name, (tamper, said) in TAMPERINGS.items():
        tamper(attacker)
        before = len(server.log)
        server.begin()
        assert server.wait() == 1, name
        (line,) = [line for line in server.log[before:].splitlines() if line]
        assert line.startswith(f"fedquorum: {said.format(run=run_id)}"), (name, line)
        attacker.write(attacker.rows)
    # 0.5 and 2 are powers of two, so that what was put back is what it was.
    vault.change("UPDATE rounds SET epsilon = epsilon * 2 WHERE epsilon IS NOT NULL")
    server.start()
    assert server.stop() == 0


def test_the_database_itself_refuses_to_change_a_ledger(server: ServerProcess, operator: httpx.Client) -> None:
    run_id = train_rounds(operator, 1)
    vault = Vault(server.database_url)
    before = vault.entries(run_id)
    statements = [
        "UPDATE privacy_ledger SET state = 'void'",
        "UPDATE privacy_ledger SET entry_hash = entry_hash",
        "DELETE FROM privacy_ledger WHERE sequence = 1",
    ]
    if server.database_url.startswith("sqlite"):
        statements += [
            "INSERT OR REPLACE INTO privacy_ledger SELECT * FROM privacy_ledger WHERE sequence = 1",
            "REPLACE INTO privacy_ledger SELECT * FROM privacy_ledger",
            "UPDATE OR REPLACE privacy_ledger SET sequence = 2",
        ]
    else:
        statements += ["TRUNCATE privacy_ledger", "TRUNCATE privacy_ledger CASCADE"]
    for statement in statements:
        with pytest.raises(sa.exc.DBAPIError, match="the privacy ledger is append-only"):
            vault.change(statement)
    assert vault.entries(run_id) == before


def test_a_restored_backup_is_noticed_by_a_client_that_saw_more(tmp_path: Path, forking: Zygote) -> None:
    file = tmp_path / "fedquorum.db"
    server = ServerProcess(f"sqlite:///{file}", tmp_path, zygote=forking).start()
    backup = tmp_path / "backup.db"
    seen: list[int] = []

    class EnoughError(Exception):
        pass

    def train(task: TrainingTask) -> TrainedModel:
        seen.append(task.round)
        if task.round == 2:
            with closing(sqlite3.connect(file)) as live, closing(sqlite3.connect(backup)) as copy:
                live.backup(copy)
        if task.round == 4:
            raise EnoughError
        return TrainedModel(tensors=dict(task.model), num_examples=1)

    def take_part() -> None:
        policy = PrivacyPolicy(max_epsilon=8.0, min_cohort=1)
        participate_blocking(server.url, run_id, train, token=client.token, state_dir=tmp_path, policy=policy)

    try:
        with server.http() as operator:
            run_id = create_run(operator, TINY, num_rounds=10, **PRIVATE)
            client = enrol(operator)
        with pytest.raises(EnoughError):
            take_part()
        assert seen == [1, 2, 3, 4]
        assert server.stop() == 0
        for left in tmp_path.glob("fedquorum.db-*"):
            left.unlink()
        shutil.copy(backup, file)
        server.start()
        with pytest.raises(PrivacyClaimError, match=r"ledger_length is 3; an older copy .* has seen 7") as noticed:
            take_part()
        assert (noticed.value.field, noticed.value.value, noticed.value.bound) == ("ledger_length", 3, 7)
        assert seen == [1, 2, 3, 4]
    finally:
        server.kill()
