"""SIGKILL amid appends and at their ends: the offset that was told never shrinks nor lies, and the body counts once."""

import hashlib
import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import pytest

from tests.support.chaos import check_files_are_blobs, check_nothing_is_left_over
from tests.support.object_server import BUCKET, ObjectServer
from tests.support.participant import (
    MEDIA_TYPE,
    Participant,
    closing_later,
    create_run,
    enrol,
    unpack,
    update_body,
    wait_for_run,
)
from tests.support.raw import connect, read_answer
from tests.support.server import ServerProcess, free_port
from tests.support.waiting import eventually
from tests.support.zygote import Zygote

NUM_PARAMETERS: Final = 1_200_000
STEP_NUM_BYTES: Final = (4 << 20) + 12_345
"""An append of more than is written at once, and of no whole number of chunks."""

WHOLE: Final = 1 << 30

EVERY_POINT: Final = (
    (
        STEP_NUM_BYTES,
        (
            "uploads.chunks_stored:1",
            "uploads.checkpointed:1",
            "uploads.completing:1",
            "intake.chunks_stored:1",
            "intake.before_commit:1",
            "intake.after_commit:1",
        ),
    ),
    (STEP_NUM_BYTES, ("uploads.taken:1",)),
    (WHOLE, ("uploads.chunks_stored:1",)),
    (WHOLE, ("intake.before_commit:1",)),
    (WHOLE, ("intake.after_commit:1",)),
    (WHOLE, ("uploads.taken:1",)),
)
SOME_POINTS: Final = (
    (STEP_NUM_BYTES, ("intake.after_commit:1",)),
    (WHOLE, ("intake.after_commit:1",)),
)
"""Bodies by the bytes of an append, and the points at which a server dies of them, one after the other."""


@dataclass
class Sender:
    """Sends one body, and forgets whatever the server has told to be stored."""

    server: ServerProcess
    participant: Participant
    body: bytes
    url: str = ""
    told: int = 0

    @property
    def http(self) -> httpx.Client:
        return self.participant.http

    def begin(self, task_id: str) -> None:
        headers = {"Content-Type": MEDIA_TYPE, "Upload-Length": str(len(self.body)), "Upload-Complete": "?0"}
        begun = self.http.post(f"/v1/tasks/{task_id}/uploads", headers=headers)
        assert begun.status_code == 201, begun.text
        self.url = begun.headers["location"]

    def go_on(self, *, step: int) -> httpx.Response | None:
        """Goes on where the server says until the body is taken in, and gives its answer; None if the server dies."""
        try:
            while True:
                self.hear(self.http.head(self.url))
                is_last = self.told + step >= len(self.body)
                answer = self.append(step)
                if is_last:
                    assert answer.status_code in (200, 201), answer.text
                    return answer
                self.hear(answer)
        except httpx.TransportError:
            return None

    def append(self, num_bytes: int) -> httpx.Response:
        """Sends so many bytes behind those that were told, or all that are left."""
        is_last = self.told + num_bytes >= len(self.body)
        headers = {
            "Content-Type": "application/partial-upload",
            "Upload-Offset": str(self.told),
            "Upload-Complete": "?1" if is_last else "?0",
        }
        return self.http.patch(self.url, content=self.body[self.told : self.told + num_bytes], headers=headers)

    def hear(self, answer: httpx.Response) -> None:
        """Notes how much is told to be stored, which is never less than before."""
        assert answer.status_code == 204, answer.headers
        offset = int(answer.headers["upload-offset"])
        assert offset >= self.told, f"{offset} bytes are stored, and {self.told} were told to be"
        self.told = offset


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_kills_amid_uploads_to_files_lose_nothing_that_was_told(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    environment = {"FEDQUORUM_BLOB_STORE": f"file://{tmp_path}/blobs"}
    _survive_all(database_url, tmp_path, forking=forking, environment=environment, bodies=SOME_POINTS)


@pytest.mark.soak
@pytest.mark.parametrize("place", ["database", "file", "s3"])
def test_kills_at_every_point_of_uploads_lose_nothing_that_was_told(
    database_url: str, place: str, tmp_path: Path, forking: Zygote, request: pytest.FixtureRequest
) -> None:
    environment = _environment(place, tmp_path, request)
    _survive_all(database_url, tmp_path, forking=forking, environment=environment, bodies=EVERY_POINT)


def _survive_all(
    database_url: str,
    folder: Path,
    *,
    forking: Zygote,
    environment: dict[str, str],
    bodies: Sequence[tuple[int, Sequence[str]]],
) -> None:
    server = ServerProcess(database_url, folder, environment, port=free_port(), zygote=forking).start()
    try:
        for step, plan in bodies:
            _survive(server, step=step, plan=plan)
        check_nothing_is_left_over(database_url)
        if (folder / "blobs").exists():
            eventually(lambda: not _deletions(database_url))
            check_files_are_blobs(database_url, folder / "blobs")
    finally:
        server.kill()


def _survive(server: ServerProcess, *, step: int, plan: Sequence[str]) -> None:
    """Sends an update in appends of `step` bytes to a server that dies by a plan, and looks at what it has become."""
    model = {"w": np.zeros(NUM_PARAMETERS, dtype=np.float32)}
    delta = np.random.default_rng(len(plan)).normal(size=NUM_PARAMETERS).astype(np.float32)
    with server.http() as operator:
        run_id = create_run(operator, model, num_rounds=1, round={"quorum": 1})
        participant = enrol(operator, "sends")
        task_id = participant.claim(run_id, wait=20).json()["task_id"]
        sender = Sender(server, participant, update_body({"w": delta}, num_examples=1))
        sender.begin(task_id)
        for point in plan:
            server.kill()
            server.start(FEDQUORUM_FAILPOINT=f"{point}:kill")
            assert sender.go_on(step=step) is None, f"{point} was not passed"
            assert server.wait() == -9
        server.start()
        answer = sender.go_on(step=step)
        assert answer is not None, server.log[-4000:]
        assert answer.json()["digest"] == f"sha256:{hashlib.sha256(sender.body).hexdigest()}"
        published = unpack(wait_for_run(operator, run_id, version=1).content)
        assert np.array_equal(published["w"], delta)
        assert len(operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]) == 1
    assert '"level": "error"' not in server.log, server.log[-4000:]


@pytest.mark.parametrize("step", [STEP_NUM_BYTES, WHOLE])
def test_a_failure_of_the_server_at_the_end_keeps_all_that_has_arrived(
    database_url: str, tmp_path: Path, forking: Zygote, step: int
) -> None:
    server = ServerProcess(database_url, tmp_path, zygote=forking)
    server.start(FEDQUORUM_FAILPOINT="intake.before_commit:1:error")
    try:
        with server.http() as operator:
            participant = enrol(operator, "sends")
            run_id = create_run(operator, {"w": np.zeros(NUM_PARAMETERS, dtype=np.float32)}, round={"quorum": 1})
            body = update_body({"w": np.ones(NUM_PARAMETERS, dtype=np.float32)}, num_examples=1)
            sender = Sender(server, participant, body)
            sender.begin(participant.claim(run_id, wait=20).json()["task_id"])
            while sender.told + step < len(body):
                sender.hear(sender.append(step))
            assert sender.append(step).status_code == 500
            # The server closes the connection on which it has failed.
            participant.http = closing_later(server.http(participant.token))
            sender.hear(sender.http.head(sender.url))
            assert sender.told == len(body)
            answer = sender.append(0)
            assert (answer.status_code, answer.headers["upload-complete"]) == (201, "?1"), answer.text
            published = unpack(wait_for_run(operator, run_id, version=1).content)
            assert np.array_equal(published["w"], np.ones(NUM_PARAMETERS))
    finally:
        server.kill()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_part_that_nobody_goes_on_with_is_removed_with_its_bytes(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    folder = tmp_path / "blobs"
    environment = {"FEDQUORUM_BLOB_STORE": f"file://{folder}"}
    server = ServerProcess(database_url, tmp_path, environment, port=free_port(), zygote=forking).start()
    try:
        with server.http() as operator:
            participant = enrol(operator, "leaves")
            run_id = create_run(operator, {"w": np.zeros(10, dtype=np.float32)}, round={"quorum": 1})
            sender = Sender(server, participant, update_body({"w": np.zeros(10, dtype=np.float32)}, num_examples=1))
            sender.begin(participant.claim(run_id, wait=20).json()["task_id"])
            sender.hear(sender.append(50))
            server.kill()
            server.start()
            assert sender.http.head(sender.url).headers["upload-offset"] == "50"
            server.kill()
            with _database(database_url) as connection:
                connection.execute("UPDATE uploads SET expires_at = 0")
                connection.commit()
            server.start()
            eventually(lambda: sender.http.head(sender.url).status_code == 404)
            eventually(lambda: not _deletions(database_url))
        server.kill()
        check_files_are_blobs(database_url, folder)
    finally:
        server.kill()


@pytest.mark.soak
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("place", ["database", "file"])
def test_an_append_of_a_process_that_stood_still_changes_nothing_afterwards(
    database_url: str, place: str, tmp_path: Path, forking: Zygote, request: pytest.FixtureRequest
) -> None:
    environment = _environment(place, tmp_path, request)
    folders = [tmp_path / "stands_still", tmp_path / "goes_on"]
    for folder in folders:
        folder.mkdir()
    stopped, other = (ServerProcess(database_url, folder, environment, zygote=forking).start() for folder in folders)
    try:
        with other.http() as operator:
            participant = enrol(operator, "sends")
            run_id = create_run(operator, {"w": np.zeros(NUM_PARAMETERS, dtype=np.float32)}, round={"quorum": 1})
            body = update_body({"w": np.ones(NUM_PARAMETERS, dtype=np.float32)}, num_examples=1)
            sender = Sender(other, participant, body)
            sender.begin(participant.claim(run_id, wait=20).json()["task_id"])
            with connect(stopped.url) as link:
                link.sendall(_append_head(sender))
                assert read_answer(link, length=0).status == 100
                link.sendall(bytes(STEP_NUM_BYTES - 1))
                with stopped.http(None) as http:
                    # It has one loop: once it has answered what came later, it has read what came before.
                    assert http.get("/healthz").status_code == 200
                os.kill(stopped.pid, signal.SIGSTOP)
                sender.hear(sender.http.head(sender.url))
                sender.hear(sender.append(STEP_NUM_BYTES // 2))
                os.kill(stopped.pid, signal.SIGCONT)
                link.sendall(bytes(1))
                assert read_answer(link).status == 409
            sender.hear(sender.http.head(sender.url))
            assert sender.told == STEP_NUM_BYTES // 2
            answer = sender.go_on(step=WHOLE)
            assert answer is not None
            assert answer.json()["digest"] == f"sha256:{hashlib.sha256(body).hexdigest()}"
    finally:
        stopped.kill()
        other.kill()


def _append_head(sender: Sender) -> bytes:
    lines = [
        f"PATCH {sender.url} HTTP/1.1",
        "Host: test",
        f"Authorization: Bearer {sender.participant.token}",
        "Content-Type: application/partial-upload",
        f"Content-Length: {STEP_NUM_BYTES}",
        "Upload-Offset: 0",
        "Upload-Complete: ?0",
        "Expect: 100-continue",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _environment(place: str, folder: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    if place == "database":
        return {}
    if place == "file":
        return {"FEDQUORUM_BLOB_STORE": f"file://{folder}/blobs"}
    objects: ObjectServer = request.getfixturevalue("objects")
    return objects.environment | {"FEDQUORUM_BLOB_STORE": f"s3://{BUCKET}/{folder.name.replace('_', '-')}"}


@contextmanager
def _database(url: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        yield connection


def _deletions(database_url: str) -> int:
    if not database_url.startswith("sqlite"):
        return 0
    with _database(database_url) as connection:
        count: int = connection.execute("SELECT count(*) FROM blob_deletions").fetchone()[0]
    return count
