"""Uploads that go on after a cut: whatever arrived is kept, the offset that is told is true, the end is the PUT's."""

import base64
import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.support.participant import (
    MEDIA_TYPE,
    Participant,
    Tensors,
    create_run,
    enrol,
    pack,
    small_model,
    unpack,
    update_body,
    wait_for_run,
)
from tests.support.raw import connect, read_answer
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

PARTIAL = "application/partial-upload"
DELTA = {name: np.full_like(values, 0.5) for name, values in small_model().items()}
BODY = update_body(DELTA, num_examples=3)


def digest_header(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def begin(http: httpx.Client, path: str, num_bytes: int, **headers: str) -> httpx.Response:
    """Begins an upload of so many bytes."""
    own = {"Content-Type": MEDIA_TYPE, "Upload-Complete": "?0", "Upload-Length": str(num_bytes)}
    return http.post(path, headers=own | headers)


def append(http: httpx.Client, url: str, data: bytes, *, offset: int, last: bool = False) -> httpx.Response:
    """Appends bytes."""
    headers = {"Content-Type": PARTIAL, "Upload-Offset": str(offset), "Upload-Complete": "?1" if last else "?0"}
    return http.patch(url, content=data, headers=headers)


def offset_of(http: httpx.Client, url: str) -> int:
    """Asks how much is stored."""
    answer = http.head(url)
    assert answer.status_code == 204, answer.status_code
    return int(answer.headers["upload-offset"])


class Sender:
    """A client with an open task in a run of its own."""

    def __init__(self, operator: httpx.Client, model: Tensors | None = None) -> None:
        self.operator = operator
        self.client: Participant = enrol(operator, "sends")
        self.run_id = create_run(operator, model or small_model(), num_rounds=2, round={"quorum": 1})
        claimed = self.client.claim(self.run_id, wait=20)
        assert claimed.status_code == 201, claimed.text
        self.task_id: str = claimed.json()["task_id"]

    @property
    def http(self) -> httpx.Client:
        return self.client.http

    def begin(self, num_bytes: int = len(BODY), **headers: str) -> str:
        """Begins an upload of the task's update and gives its URL."""
        answer = begin(self.http, f"/v1/tasks/{self.task_id}/uploads", num_bytes, **headers)
        assert answer.status_code == 201, answer.text
        return str(answer.headers["location"])


@pytest.fixture
def sender(shared_operator: httpx.Client) -> Sender:
    return Sender(shared_operator)


def test_a_body_in_parts_is_answered_as_its_put_is_and_counts_once(sender: Sender) -> None:
    answer = begin(
        sender.http, f"/v1/tasks/{sender.task_id}/uploads", len(BODY), **{"Content-Digest": digest_header(BODY)}
    )
    assert answer.status_code == 201, answer.text
    url, made = answer.headers["location"], answer.json()
    assert (made["url"], made["offset"], made["num_bytes"]) == (url, 0, len(BODY))
    assert url == f"/v1/uploads/{made['upload_id']}"
    assert made["expires_at"]
    assert answer.headers["upload-offset"] == "0"
    assert f"max-append-size={len(BODY)}" in answer.headers["upload-limit"]
    first = append(sender.http, url, BODY[:100], offset=0)
    assert (first.status_code, first.headers["upload-offset"], first.headers["upload-complete"]) == (204, "100", "?0")
    told = sender.http.head(url)
    assert (told.status_code, told.headers["upload-offset"], told.headers["upload-complete"]) == (204, "100", "?0")
    assert (told.headers["upload-length"], told.headers["cache-control"]) == (str(len(BODY)), "no-store")
    last = append(sender.http, url, BODY[100:], offset=100, last=True)
    assert (last.status_code, last.headers["upload-complete"]) == (201, "?1"), last.text
    assert last.json()["digest"] == f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    assert last.json()["task_id"] == sender.task_id
    model = unpack(wait_for_run(sender.operator, sender.run_id, version=1).content)
    for name, values in small_model().items():
        assert np.array_equal(model[name], values + DELTA[name])
    # The answer was lost: it is asked for, by the upload or by the PUT.
    told = sender.http.head(url)
    assert (told.headers["upload-complete"], told.headers["upload-offset"]) == ("?1", str(len(BODY)))
    again = append(sender.http, url, b"", offset=len(BODY), last=True)
    assert (again.status_code, again.json()) == (200, last.json())
    assert sender.client.put(sender.task_id, BODY).json() == last.json()
    assert_refused(append(sender.http, url, b"x", offset=len(BODY)), "completed-upload")


def test_an_append_out_of_place_changes_nothing_and_is_told_where_to_go_on(sender: Sender) -> None:
    url = sender.begin()
    assert append(sender.http, url, BODY[:10], offset=0).status_code == 204
    for offset in (0, 9, 11, len(BODY)):
        answer = append(sender.http, url, BODY[offset:], offset=offset, last=True)
        problem = assert_refused(answer, "mismatching-upload-offset")
        assert (problem["expected_offset"], problem["provided_offset"]) == (10, offset)
        assert answer.headers["upload-offset"] == "10"
    assert append(sender.http, url, BODY[10:], offset=10, last=True).status_code == 201


def test_a_body_that_breaks_off_is_kept_as_far_as_it_came(shared_server: ServerProcess, sender: Sender) -> None:
    url = sender.begin()
    with _beginning(shared_server, sender, url, offset=0, num_bytes=77):
        pass
    eventually(lambda: offset_of(sender.http, url) == 77)
    assert append(sender.http, url, BODY[77:], offset=77, last=True).status_code == 201


def test_a_newer_request_ends_an_append_that_still_waits_for_its_sender(
    shared_server: ServerProcess, sender: Sender
) -> None:
    url = sender.begin()
    with _beginning(shared_server, sender, url, offset=0, num_bytes=50) as link:
        assert offset_of(sender.http, url) == 50
        assert read_answer(link).status == 409
    with _beginning(shared_server, sender, url, offset=50, num_bytes=10) as link:
        assert append(sender.http, url, BODY[60:70], offset=60).status_code == 204
        assert read_answer(link).status == 409
    assert append(sender.http, url, BODY[70:], offset=70, last=True).status_code == 201


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "dead"])
def test_all_that_the_network_has_brought_is_kept_when_the_line_breaks(
    shared_server: ServerProcess, shared_operator: httpx.Client, closes: bool
) -> None:
    """Far more than the server has read when it is asked how much it has."""
    body = update_body({"w": np.ones(2_000_000, dtype=np.float32)}, num_examples=1)
    sender = Sender(shared_operator, {"w": np.zeros(2_000_000, dtype=np.float32)})
    url = sender.begin(len(body))
    with connect(shared_server.url) as link:
        link.sendall(_head(shared_server, sender, url, offset=0, num_bytes=len(body)))
        assert read_answer(link, length=0).status == 100
        link.sendall(body[:7_000_000])
        if closes:
            link.close()
        assert offset_of(sender.http, url) == 7_000_000


@contextmanager
def _beginning(
    server: ServerProcess, sender: Sender, url: str, *, offset: int, num_bytes: int
) -> Iterator[socket.socket]:
    """Sends the first bytes of an append of all the rest, and waits until the server has them and waits for more."""
    with connect(server.url) as link:
        link.sendall(_head(server, sender, url, offset=offset, num_bytes=len(BODY) - offset))
        assert read_answer(link, length=0).status == 100
        link.sendall(BODY[offset : offset + num_bytes])
        # The server has one loop: once it has answered what came later, it has read what came before.
        assert sender.http.get("/healthz").status_code == 200
        yield link


def _head(server: ServerProcess, sender: Sender, url: str, *, offset: int, num_bytes: int) -> bytes:
    lines = [
        f"PATCH {url} HTTP/1.1",
        f"Host: {urlsplit(server.url).netloc}",
        f"Authorization: Bearer {sender.client.token}",
        f"Content-Type: {PARTIAL}",
        f"Content-Length: {num_bytes}",
        f"Upload-Offset: {offset}",
        "Upload-Complete: ?1",
        "Expect: 100-continue",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_a_new_upload_takes_the_place_of_the_one_before(sender: Sender) -> None:
    before = sender.begin()
    assert append(sender.http, before, BODY[:10], offset=0).status_code == 204
    url = sender.begin()
    assert sender.http.head(before).status_code == 404
    assert_refused(append(sender.http, before, BODY[10:], offset=10, last=True), "not-found")
    assert append(sender.http, url, BODY, offset=0, last=True).status_code == 201


def test_a_part_that_is_given_up_is_gone(sender: Sender) -> None:
    url = sender.begin()
    assert append(sender.http, url, BODY[:10], offset=0).status_code == 204
    assert sender.http.delete(url).status_code == 204
    assert_refused(sender.http.delete(url), "not-found")
    assert_refused(append(sender.http, url, BODY[10:], offset=10), "not-found")


def test_a_part_is_seen_by_its_client_alone(sender: Sender) -> None:
    url = sender.begin()
    for http in (enrol(sender.operator, "other").http, sender.operator):
        assert http.head(url).status_code == 404
        assert_refused(append(http, url, BODY, offset=0, last=True), "not-found")
        assert_refused(http.delete(url), "not-found")
    assert offset_of(sender.http, url) == 0


def test_a_whole_body_is_refused_as_its_put_is_and_its_part_is_removed(sender: Sender) -> None:
    bad = update_body(DELTA | {"scale": np.array(np.nan, dtype=np.float32)}, num_examples=3)
    cases = [
        (bad, {}, "non-finite"),
        (pack(DELTA), {}, "invalid-metadata"),
        (BODY[:-1], {}, "malformed-update"),
        (BODY, {"Content-Digest": digest_header(b"other")}, "digest-mismatch"),
        (BODY, {"Content-Encoding": "zstd"}, "malformed-update"),
    ]
    for body, headers, slug in cases:
        url = sender.begin(len(body), **headers)
        assert append(sender.http, url, body[:20], offset=0).status_code == 204
        assert_refused(append(sender.http, url, body[20:], offset=20, last=True), slug)
        assert sender.http.head(url).status_code == 404
    assert sender.client.put(sender.task_id, BODY).status_code == 201


def test_what_cannot_be_taken_is_refused_before_its_bytes_are_sent(sender: Sender) -> None:
    path = f"/v1/tasks/{sender.task_id}/uploads"
    assert_refused(begin(sender.http, path, 1 << 30), "too-large", "1073741824")
    assert_refused(begin(sender.http, path, 10**13), "invalid-request", "Upload-Length")
    assert_refused(begin(sender.http, path, 0), "invalid-request", "Upload-Length")
    assert_refused(begin(sender.http, path, 9, **{"Upload-Complete": "?1"}), "invalid-request", "Upload-Complete")
    assert_refused(begin(sender.http, path, 9, **{"Content-Type": "text/plain"}), "unsupported-media-type")
    assert_refused(begin(sender.http, path, 9, **{"Content-Encoding": "br"}), "unsupported-media-type")
    assert_refused(begin(sender.http, path, 9, **{"Content-Digest": "sha-256=:x:"}), "invalid-request")
    assert_refused(sender.http.post(path, headers={"Content-Type": MEDIA_TYPE}), "invalid-request", "Upload-Length")
    url = sender.begin()
    assert_refused(append(sender.http, url, BODY + b"x", offset=0), "too-large", str(len(BODY)))
    assert_refused(append(sender.http, url, BODY[:-1], offset=0, last=True), "invalid-request", str(len(BODY)))
    wrong = {"Content-Type": MEDIA_TYPE, "Upload-Offset": "0", "Upload-Complete": "?1"}
    assert_refused(sender.http.patch(url, content=BODY, headers=wrong), "unsupported-media-type", "partial-upload")
    for name, value in (("Upload-Offset", "-1"), ("Upload-Offset", "1_0"), ("Upload-Complete", "1")):
        headers = {"Content-Type": PARTIAL, "Upload-Offset": "0", "Upload-Complete": "?0"} | {name: value}
        assert_refused(sender.http.patch(url, content=BODY, headers=headers), "invalid-request", name)
    assert offset_of(sender.http, url) == 0


def test_more_bytes_than_were_announced_are_refused_though_their_number_is_not_told(sender: Sender) -> None:
    url = sender.begin()

    def pieces() -> Iterator[bytes]:
        yield BODY
        yield b"more"

    headers = {"Content-Type": PARTIAL, "Upload-Offset": "0", "Upload-Complete": "?1"}
    assert_refused(sender.http.patch(url, content=pieces(), headers=headers), "too-large")
    offset = offset_of(sender.http, url)
    assert append(sender.http, url, BODY[offset:], offset=offset, last=True).status_code == 201


def test_a_part_is_refused_and_removed_once_its_round_has_closed(shared_operator: httpx.Client) -> None:
    sender = Sender(shared_operator)
    url = sender.begin()
    assert append(sender.http, url, BODY[:10], offset=0).status_code == 204
    assert sender.operator.post(f"/v1/runs/{sender.run_id}/stop").status_code == 200
    assert_refused(append(sender.http, url, BODY[10:20], offset=10), "round-closed")
    assert sender.http.head(url).status_code == 404


def test_an_initial_model_is_sent_in_parts_by_an_operator(shared_operator: httpx.Client) -> None:
    body = pack(small_model())
    run_id = shared_operator.post("/v1/runs", json={"name": "test"}).json()["run_id"]
    path = f"/v1/runs/{run_id}/models/0/uploads"
    url = begin(shared_operator, path, len(body)).headers["location"]
    assert enrol(shared_operator, "client").http.head(url).status_code == 404
    assert append(shared_operator, url, body[:30], offset=0).status_code == 204
    assert offset_of(shared_operator, url) == 30
    last = append(shared_operator, url, body[30:], offset=30, last=True)
    assert (last.status_code, last.headers["upload-complete"]) == (201, "?1"), last.text
    assert last.json()["digest"] == f"sha256:{hashlib.sha256(body).hexdigest()}"
    again = append(shared_operator, url, b"", offset=len(body), last=True)
    assert (again.status_code, again.json()["digest"]) == (200, last.json()["digest"])
    assert shared_operator.post(f"/v1/runs/{run_id}/start").status_code == 200
    assert shared_operator.get(f"/v1/runs/{run_id}/models/0").content == body
    assert_refused(begin(shared_operator, "/v1/runs/run_" + "0" * 32 + "/models/0/uploads", 9), "not-found")
