"""Kills a server by a plan, again and again, while clients that retry the same requests take part in a run."""

import sqlite3
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from aggregator_service.storage.blobs.ready import ROWS_AHEAD
from tests.support.ledger import NUM_CLIENTS, Ledger, body_of
from tests.support.participant import MEDIA_TYPE, Participant, enrol
from tests.support.server import ServerProcess
from tests.support.waiting import eventually
from tests.support.zygote import Zygote

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class KillAfter:
    """SIGKILL so many seconds after the server's start; a `cold` one is not forked, so that it dies while importing."""

    seconds: float
    cold: bool = False


@dataclass(frozen=True)
class KillAt:
    """SIGKILL when a named point is passed for the nth time since the server's start."""

    failpoint: str
    nth: int


Fault = KillAfter | KillAt


def carry_out(server: ServerProcess, plan: Sequence[Fault], *, forking: Zygote, jobs: Sequence["Future[int]"]) -> None:
    """Starts the server for each fault of a plan and lets it die of it; raises what a client's job raised."""
    for fault in plan:
        if isinstance(fault, KillAt):
            server.zygote = forking
            server.begin(FEDQUORUM_FAILPOINT=f"{fault.failpoint}:{fault.nth}:kill")
            _await_death(server, jobs)
        else:
            server.zygote = None if fault.cold else forking
            server.begin()
            # The instant of the kill is what is random here; there is nothing to wait for.
            time.sleep(fault.seconds)
            assert server.is_running(), server.log[-4000:]
            server.kill()


def _await_death(server: ServerProcess, jobs: Sequence["Future[int]"]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while server.is_running():
        for job in jobs:
            if job.done():
                job.result()
        assert time.monotonic() < deadline, f"the point was not passed within {PATIENCE_SECONDS} s"
        with suppress(subprocess.TimeoutExpired):
            server.wait(0.2)
    assert server.wait() == -9, server.log[-4000:]


@dataclass
class PersistentClient:
    """One client that repeats a request until it is answered, as the contract says it safely may."""

    number: int
    participant: Participant
    run_id: str
    ledger: Ledger
    num_padding: int = 0
    last_round: int | None = None
    is_called_off: bool = False
    num_replays: int = 0

    def take_part(self) -> int:
        """Takes part until the run or its last wanted round has ended; gives the number of updates it sent."""
        num_accepted = 0
        while not self.is_called_off:
            claimed = self.send("POST", f"/v1/runs/{self.run_id}/tasks", params={"wait": 5})
            if claimed.status_code == 204:
                continue
            if claimed.status_code == 410:
                return num_accepted
            assert claimed.status_code in (200, 201), claimed.text
            task = claimed.json()
            if self.last_round is not None and task["round"] > self.last_round:
                return num_accepted
            self.answer(task)
            num_accepted += 1
        return num_accepted

    def answer(self, task: dict[str, Any]) -> None:
        """Answers a task and notes its receipt."""
        model = self.send("GET", task["model_url"])
        assert model.headers["etag"].strip('"') == task["model_digest"]
        body = body_of(self.number, task["round"], self.num_padding)
        path = f"/v1/tasks/{task['task_id']}/update"
        accepted = self.send("PUT", path, content=body, headers={"Content-Type": MEDIA_TYPE})
        assert accepted.status_code in (200, 201), accepted.text
        self.num_replays += accepted.status_code == 200
        self.ledger.note(self.number, body, accepted.json())

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Repeats a request until it is answered."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self.participant.http.request(method, path, **request)
            except httpx.TransportError:
                if self.is_called_off or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            if answer.status_code != 503:
                return answer


@contextmanager
def taking_part(
    operator: httpx.Client,
    run_id: str,
    ledger: Ledger,
    *,
    num_padding: int = 0,
    kind: type[PersistentClient] = PersistentClient,
) -> Iterator[tuple[list[PersistentClient], list["Future[int]"]]]:
    """Enrols the clients and lets each of them take part on a thread of its own."""
    clients = [
        kind(number, enrol(operator, f"client-{number}"), run_id, ledger, num_padding) for number in range(NUM_CLIENTS)
    ]
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        try:
            yield clients, [pool.submit(client.take_part) for client in clients]
        except BaseException:
            for client in clients:
                client.is_called_off = True
            raise


def check_files_are_blobs(database_url: str, folder: Path) -> None:
    """Checks on SQLite, whose starts sweep, that there is a file for each blob and none beside but empty ones.

    Those stand ready for blobs to come, whose rows are there, too.
    """
    if not database_url.startswith("sqlite"):
        return
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("SELECT count(*) FROM blobs WHERE store = 'database'").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM blob_deletions").fetchone() == (0,)
        named = {name for (name,) in connection.execute("SELECT blob_id FROM blobs WHERE num_bytes > 0")}
        ready = {name for (name,) in connection.execute("SELECT blob_id FROM blobs WHERE num_bytes = 0")}
    files = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert {name for name, num_bytes in files.items() if num_bytes} == named
    assert files.keys() - named <= ready


def check_nothing_is_left_over(database_url: str) -> None:
    """On SQLite a start removes every upload that was never finished; on Postgres another server may be at it."""
    if database_url.startswith("sqlite"):
        path = Path(database_url.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path)) as connection:
            in_chunks = "SELECT count(*) FROM blobs WHERE NOT sealed AND store = 'database'"
            eventually(lambda: connection.execute(in_chunks).fetchone() == (0,))
            # Of a store of files the living server has some rows ahead, and nothing more.
            ahead = "SELECT count(*) FROM blobs WHERE NOT sealed"
            eventually(lambda: int(connection.execute(ahead).fetchone()[0]) <= ROWS_AHEAD + ROWS_AHEAD // 2)
