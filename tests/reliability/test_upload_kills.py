"""SIGKILL amid appends and at their ends: the offset that was told never shrinks nor lies, and the body counts once."""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import pytest

from tests.support.chaos import check_files_are_blobs, check_nothing_is_left_over
from tests.support.object_server import BUCKET, ObjectServer
from tests.support.participant import MEDIA_TYPE, Participant, create_run, enrol, unpack, update_body, wait_for_run
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
    (WHOLE, ("uploads.chunks_stored:1", "uploads.checkpointed:1")),
    (WHOLE, ("intake.before_commit:1",)),
    (WHOLE, ("intake.after_commit:1",)),
    (WHOLE, ("uploads.taken:1",)),
)
SOME_POINTS: Final = (
    (STEP_NUM_BYTES, ("uploads.checkpointed:1", "intake.after_commit:1")),
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
    told_often: list[int] = field(default_factory=list)

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
                asked = self.http.head(self.url)
                assert asked.status_code == 204, asked.headers
                self._hear(asked)
                data = self.body[self.told : self.told + step]
                is_last = self.told + step >= len(self.body)
                headers = {
                    "Content-Type": "application/partial-upload",
                    "Upload-Offset": str(self.told),
                    "Upload-Complete": "?1" if is_last else "?0",
                }
                answer = self.http.patch(self.url, content=data, headers=headers)
                if is_last:
                    assert answer.status_code in (200, 201), answer.text
                    return answer
                assert answer.status_code == 204, answer.text
                self._hear(answer)
        except httpx.TransportError:
            return None

    def _hear(self, answer: httpx.Response) -> None:
        offset = int(answer.headers["upload-offset"])
        assert offset >= self.told, f"{offset} bytes are stored, and {self.told} were told to be"
        self.told = offset
        self.told_often.append(offset)


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
            headers = {
                "Content-Type": "application/partial-upload",
                "Upload-Offset": "0",
                "Upload-Complete": "?0",
            }
            assert sender.http.patch(sender.url, content=sender.body[:50], headers=headers).status_code == 204
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
