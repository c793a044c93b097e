"""SIGKILL at every named point of private runs: nothing is readable unpaid, paid twice, or noised by a second key."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from aggregator_service import failpoints
from aggregator_service.domain.privacy import blt
from aggregator_service.domain.privacy.blt import Participation
from fl_protocol.privacy import lattice, noise
from tests.support.chaos import check_nothing_is_left_over
from tests.support.insistent import Insistent
from tests.support.participant import MEDIA_TYPE, Participant, Tensors, create_run, enrol, unpack, update_body
from tests.support.server import ServerProcess, free_port
from tests.support.vault import Vault, states
from tests.support.zygote import Zygote

NUM_CLIENTS = 3
SIZE = 1500
LARGE = 1_100_000
"""Parameters of a model whose bytes are written ahead of the transaction that names them (more than 4 MiB)."""

BUDGET = {"target_epsilon": 1e4, "delta": 1e-6, "noise_multiplier": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "central_gaussian": {},
    "central_gaussian_adaptive": {"initial_clipping_norm": 1.0, "count_stddev": 1.0},
    "central_blt": {},
}
PLANS = {
    # In the order in which a run comes by: the first round's uploads and its model, a rollback in the second.
    "central_gaussian": (
        "intake.received:2",
        "intake.before_commit:1",
        "intake.after_commit:1",
        "aggregation.started:1",
        "aggregation.halfway:1",
        "aggregation.model_written:1",
        "publication.in_transaction:1",
        "publication.after_commit:1",
        "rollback.in_transaction:1",
        "rollback.after_commit:1",
        "aggregation.model_written:1",
        "publication.after_commit:1",
        "aggregation.started:1",
    ),
    "central_gaussian_adaptive": (
        "aggregation.model_written:1",
        "publication.after_commit:1",
        "publication.in_transaction:1",
    ),
    "central_blt": (
        "aggregation.model_written:1",
        "publication.in_transaction:1",
        "publication.after_commit:1",
        "aggregation.halfway:1",
    ),
}
NUM_ROUNDS = {"central_gaussian": 3, "central_gaussian_adaptive": 2, "central_blt": 2}
"""The last fault of each plan strikes in the last round, so that every round's key is seen."""

LARGE_PLAN = (
    "intake.chunks_stored:1",
    "aggregation.model_written:1",
    "aggregation.model_written:1",
)


def test_every_named_point_that_a_private_run_passes_is_killed_at() -> None:
    named = {fault.split(":")[0] for plan in (*PLANS.values(), LARGE_PLAN) for fault in plan}
    # A private run's updates may come in parts like any other's: test_upload_kills.py.
    others = ("blobs.", "eager.", "evaluation.", "retention.", "session.", "helper.", "uploads.")
    assert {name for name in failpoints.NAMES if not name.startswith(others)} == named


def delta_of(client: int, version: int, size: int = SIZE) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Gives an update whose norm float64 holds exactly: that of client 0 is 2, which a clip to 1 halves."""
    values = np.zeros(size, dtype=np.float32)
    signs = np.random.default_rng([client, version]).integers(0, 2, 256) * 2 - 1
    values[client * 256 : (client + 1) * 256] = signs * (2.0 if client == 0 else 0.5) / 16
    return values


@dataclass
class Witness(Insistent):
    """Looks into the database after each death, and keeps what was ever found there: keys, and bytes not published."""

    run_id: str = ""
    keys: dict[str, bytes] = field(default_factory=dict)
    unsealed: dict[str, bytes] = field(default_factory=dict)

    def begin(self) -> None:
        """Starts the server that has died, after a look at what it left."""
        if self.run_id:
            self.look()
        super().begin()

    def look(self) -> None:
        """Checks what must hold at any instant, and notes keys and the bytes of a model not yet published."""
        vault = Vault(self.server.database_url)
        vault.check_charged(self.run_id)
        for round_id, key in vault.keys().items():
            assert self.keys.setdefault(round_id, key) == key, "a second key was drawn for one round"
        assert len(set(self.keys.values())) == len(self.keys)
        chunks = "SELECT c.blob_id, c.data FROM blob_chunks c JOIN blobs b ON b.blob_id = c.blob_id"
        found: defaultdict[str, bytes] = defaultdict(bytes)
        for blob_id, data in vault.rows(f"{chunks} WHERE NOT b.sealed ORDER BY c.blob_id, c.number"):
            found[blob_id] += bytes(data)
        self.unsealed |= found


@dataclass
class Course:
    """A private run that is driven step by step."""

    driver: Witness
    operator: httpx.Client
    clients: list[Participant]
    run_id: str

    def claim(self, client: int) -> dict[str, Any]:
        path = f"/v1/runs/{self.run_id}/tasks"
        while True:
            answer = self.driver.send(self.clients[client].http, "POST", path, params={"wait": 10})
            if answer.status_code != 204:
                task: dict[str, Any] = answer.json()
                return task

    def send(self, client: int, task: Mapping[str, Any], delta: Mapping[str, Any]) -> None:
        self.driver.send(
            self.clients[client].http,
            "PUT",
            f"/v1/tasks/{task['task_id']}/update",
            content=update_body(delta, num_examples=1),
            headers={"Content-Type": MEDIA_TYPE},
        )

    def step(self, client: int, version: int) -> None:
        self.send(client, self.claim(client), {"w": delta_of(client, version)})

    def roll_back(self, version: int) -> None:
        path, headers = f"/v1/runs/{self.run_id}/rollback", {"Idempotency-Key": "once"}
        self.driver.send(self.operator, "POST", path, json={"version": version}, headers=headers)

    def reach(self, version: int) -> Tensors:
        reached = {"after": version - 1, "wait": 30}
        answer = self.driver.send(self.operator, "GET", f"/v1/runs/{self.run_id}/models/latest", params=reached)
        assert answer.headers["model-version"] == str(version)
        return unpack(answer.content)


def expected(
    base: np.ndarray[Any, np.dtype[np.float32]], entry: Mapping[str, Any], *, drawn: np.ndarray[Any, Any], version: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Computes a round's model from its noise, which is in units of its width."""
    norm = entry["noise"]["clipping_norm"]
    total = np.rint(drawn * entry["noise"]["stddev"]).astype(np.int64)
    for client in range(NUM_CLIENTS):
        delta = delta_of(client, version).astype(np.float64)
        length = float(np.sqrt(np.sum(delta**2)))
        mantissa, exponent = np.frexp(norm / length)
        # A factor is rounded down to 24 bits.
        factor = 1.0 if length <= norm else np.ldexp(np.floor(np.ldexp(mantissa, 24)), exponent - 24)
        total += np.rint(delta * factor / lattice.step(norm)).astype(np.int64)
    wide = base.astype(np.float64) + total / NUM_CLIENTS * lattice.step(norm)
    return np.asarray(wide.astype(np.float32))


class Correlated:
    """The noise of a BLT, round after round; of other kinds each round's own."""

    def __init__(self, kind: str) -> None:
        num_rounds = NUM_ROUNDS[kind]
        made_for = Participation(num_rounds=num_rounds, separation=1, max_participations=num_rounds)
        self._matrix = blt.choose(made_for).blt if kind == "central_blt" else None
        self._buffers = None if self._matrix is None else blt.init(self._matrix, SIZE)

    def next(self, key: bytes) -> np.ndarray[Any, Any]:
        drawn = noise.gaussian(key, first=0, count=SIZE)
        if self._matrix is None or self._buffers is None:
            return drawn
        correlated, self._buffers = blt.step(self._matrix, drawn, buffers=self._buffers)
        return correlated


def live(driver: Witness, operator: httpx.Client, kind: str) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Takes a run from its start to its end, with a rollback in round 2 where that is planned; gives the models."""
    model: Tensors = {"w": np.zeros(SIZE, dtype=np.float32), "steps": np.array(7, dtype=np.int64)}
    spec = {"num_rounds": NUM_ROUNDS[kind], "round": {"quorum": NUM_CLIENTS, "deadline_seconds": 3600}}
    privacy = {"kind": kind} | BUDGET | KINDS[kind]
    driver.run_id = create_run(operator, model, privacy=privacy, strategy={"weighting": "uniform"}, **spec)
    course = Course(driver, operator, [enrol(operator) for _ in range(NUM_CLIENTS)], driver.run_id)
    published, version = [model["w"]], 0
    for number in range(1, NUM_ROUNDS[kind] + 1):
        if number == 2 and "rollback.in_transaction:1" in PLANS[kind]:
            course.step(0, number)
            course.roll_back(1)
            version += 1
        for client in range(NUM_CLIENTS):
            course.step(client, number)
        version += 1
        published.append(course.reach(version)["w"])
    assert operator.get(f"/v1/runs/{driver.run_id}").json()["state"] == "completed"
    return published


def check_ledger(vault: Vault, run_id: str, kind: str) -> list[dict[str, Any]]:
    """Holds the ledger of a finished run against what happened, and gives what was spent."""
    entries = vault.entries(run_id)
    attempts = [(number, 1, "spent") for number in range(1, NUM_ROUNDS[kind] + 1)]
    if "rollback.in_transaction:1" in PLANS[kind]:
        attempts[1:2] = [(2, 1, "void"), (2, 2, "spent")]
    assert states(entries) == [
        (number, attempt, state) for number, attempt, end in attempts for state in ("reserved", end)
    ]
    vault.check_charged(run_id)
    vault.check_nothing_secret_is_left()
    return [entry for entry in entries if entry["state"] == "spent"]


@pytest.mark.parametrize(
    ("database_url", "kind"),
    [("postgres", "central_gaussian"), *(("sqlite", kind) for kind in KINDS)],
    indirect=["database_url"],
)
def test_a_killed_private_run_pays_once_and_draws_one_key_a_round(
    kind: str, database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking)
    driver = Witness(server, list(PLANS[kind]))
    driver.begin()
    vault = Vault(database_url)
    try:
        with server.http() as operator:
            published = live(driver, operator, kind)
        assert driver.num_deaths == len(PLANS[kind])
        spent, correlated = check_ledger(vault, driver.run_id, kind), Correlated(kind)
        for number, entry in enumerate(spent, start=1):
            drawn = correlated.next(driver.keys[entry["round_id"]])
            found = expected(published[number - 1], entry, drawn=drawn, version=number)
            np.testing.assert_array_equal(published[number], found)
        assert '"level": "error"' not in server.log, server.log[-4000:]
        assert server.stop() == 0
        assert len(driver.keys) == NUM_ROUNDS[kind]
        assert vault.where_kept(driver.keys.values(), tmp_path) == []
    finally:
        server.kill()


def test_a_model_computed_again_after_a_kill_has_the_bits_of_the_first(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking)
    driver = Witness(server)
    driver.begin()
    try:
        with server.http() as operator:
            model: Tensors = {"w": np.zeros(LARGE, dtype=np.float32)}
            spec = {"num_rounds": 1, "round": {"quorum": 2, "deadline_seconds": 3600}}
            privacy = {"kind": "central_blt"} | BUDGET
            run_id = create_run(operator, model, privacy=privacy, strategy={"weighting": "uniform"}, **spec)
            clients = [enrol(operator) for _ in range(2)]
            server.kill()
            driver.run_id, driver.faults = run_id, list(LARGE_PLAN)
            driver.begin()
            course = Course(driver, operator, clients, run_id)
            for client in range(2):
                course.send(client, course.claim(client), {"w": delta_of(client, 1, LARGE)})
            assert course.reach(1)["w"].std() > 0.1
            assert driver.num_deaths == len(LARGE_PLAN)
            published = operator.get(f"/v1/runs/{run_id}/models/1").content
        # Two kills came when the candidate was computed. What is flushed by then is all but what travels in the commit.
        candidates = [body for body in driver.unsealed.values() if published.startswith(body)]
        assert [len(body) for body in candidates] == [4 << 20] * 2
        Vault(database_url).check_nothing_secret_is_left()
        check_nothing_is_left_over(database_url)
        assert '"level": "error"' not in server.log, server.log[-4000:]
    finally:
        server.kill()
