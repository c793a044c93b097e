"""Bad input: each malformed upload gets exactly its problem within a second, and nothing of it is stored."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.support.malformed import (
    BIG_MODEL,
    MODEL,
    Case,
    Shapes,
    body_of,
    compressed,
    corpus,
    good_body,
    model_body,
)
from tests.support.participant import MEDIA_TYPE, Participant, enrol
from tests.support.raw import RawAnswer, exchange
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored

CORPUS = corpus()
MAX_SECONDS = 1.0
MAX_GROWTH_MEGABYTES = 64


@dataclass
class Target:
    """Two running rounds that never close, a client with a task in each, and a draft that waits for its model."""

    server: ServerProcess
    stored: Stored
    operator: httpx.Client
    client: httpx.Client
    token: str
    runs: dict[int, str]
    task_ids: dict[int, str]
    draft_id: str

    def update_url(self, shapes: Shapes) -> str:
        return f"/v1/tasks/{self.task_ids[id(shapes)]}/update"

    def put_raw(self, head: bytes, body: bytes, *, half_close: bool = False) -> RawAnswer:
        """Sends an update with headers of one's own."""
        request = (
            f"PUT {self.update_url(MODEL)} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Type: {MEDIA_TYPE}\r\n"
        )
        return exchange(self.server.url, request.encode() + head + b"\r\n" + body, half_close=half_close)


def _run_of(operator: httpx.Client, shapes: Shapes, *, start: bool) -> str:
    made = operator.post("/v1/runs", json={"name": "bad-input", "round": {"quorum": 4096}})
    assert made.status_code == 201, made.text
    run_id: str = made.json()["run_id"]
    if start:
        url = f"/v1/runs/{run_id}/models/0"
        put = operator.put(url, content=model_body(shapes), headers={"Content-Type": MEDIA_TYPE})
        assert put.status_code == 201, put.text
        assert operator.post(f"/v1/runs/{run_id}/start").status_code == 200
    return run_id


def _task_of(participant: Participant, run_id: str) -> str:
    claimed = participant.claim(run_id)
    assert claimed.status_code == 201, claimed.text
    task_id: str = claimed.json()["task_id"]
    return task_id


@pytest.fixture(scope="module")
def target(shared_server: ServerProcess) -> Iterator[Target]:
    with shared_server.http() as operator:
        participant = enrol(operator, "mallory")
        runs = {id(shapes): _run_of(operator, shapes, start=True) for shapes in (MODEL, BIG_MODEL)}
        task_ids = {key: _task_of(participant, run_id) for key, run_id in runs.items()}
        draft_id = _run_of(operator, MODEL, start=False)
        # The fixture that closes a test's connections would close this one, too, after the first test.
        with shared_server.http(participant.token) as client, Stored(shared_server.database_url) as stored:
            yield Target(shared_server, stored, operator, client, participant.token, runs, task_ids, draft_id)


def _send(http: httpx.Client, url: str, case: Case) -> tuple[httpx.Response, float]:
    content = case.content()
    started = time.perf_counter()
    answer = http.put(url, content=content, headers={"Content-Type": MEDIA_TYPE, **case.headers})
    return answer, time.perf_counter() - started


def _send_in_time(http: httpx.Client, url: str, case: Case) -> httpx.Response:
    """Sends a case; a machine that was busy elsewhere gets a second chance to answer in time."""
    answer, seconds = _send(http, url, case)
    if seconds >= MAX_SECONDS:
        answer, seconds = _send(http, url, case)
    assert seconds < MAX_SECONDS, f"{case.name} took {seconds:.2f} s"
    return answer


def test_corpus_is_large_and_its_names_differ() -> None:
    assert len(CORPUS) >= 400
    assert len({case.name for case in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_malformed_update_is_refused_by_its_problem_and_leaves_nothing(target: Target, case: Case) -> None:
    before = target.stored.counts()
    answer = _send_in_time(target.client, target.update_url(case.model), case)
    assert_refused(answer, case.slug, *case.named)
    assert target.stored.counts() == before


def test_malformed_initial_model_is_refused_by_the_same_problem_and_leaves_nothing(target: Target) -> None:
    before = target.stored.counts()
    for case in CORPUS:
        slug = case.slug if case.as_model is None else case.as_model
        if slug:
            answer = _send_in_time(target.operator, f"/v1/runs/{target.draft_id}/models/0", case)
            assert answer.json().get("type") == f"/problems/{slug}", (case.name, answer.text)
    assert target.stored.counts() == before
    assert target.operator.get(f"/v1/runs/{target.draft_id}").json()["latest_version"] is None


def test_good_update_is_accepted_by_the_same_server(target: Target) -> None:
    """The corpus is wrong by one fault a case; without it the bytes are right."""
    before = target.stored.counts()["updates"]
    with_enrolled = enrol(target.operator, "alice")
    task_id = _task_of(with_enrolled, target.runs[id(MODEL)])
    body = good_body(padding=3)
    coded = with_enrolled.put(task_id, compressed(body), **{"Content-Encoding": "zstd"})
    assert coded.status_code == 201, coded.text
    assert with_enrolled.put(task_id, body).status_code == 200
    assert target.stored.counts()["updates"] == before + 1


def test_whole_corpus_does_not_make_the_server_grow(target: Target) -> None:
    participant = enrol(target.operator, "bob")
    task_id = _task_of(participant, target.runs[id(BIG_MODEL)])
    assert participant.put(task_id, body_of(BIG_MODEL)).status_code == 201
    before = target.server.resident_megabytes()
    for case in CORPUS:
        answer, _ = _send(target.client, target.update_url(case.model), case)
        assert answer.status_code < 500, (case.name, answer.text)
    assert target.server.resident_megabytes() - before <= MAX_GROWTH_MEGABYTES


def test_task_takes_a_good_update_after_all_the_bad_ones(target: Target) -> None:
    participant = enrol(target.operator, "carol")
    task_id = _task_of(participant, target.runs[id(MODEL)])
    for case in CORPUS[::20]:
        if case.model is MODEL:
            refused, _ = _send(participant.http, f"/v1/tasks/{task_id}/update", case)
            assert refused.status_code >= 400
    assert participant.put(task_id, good_body()).status_code == 201


GOOD = good_body()
LENGTH = str(len(GOOD)).encode()
RAW_BODIES: dict[str, tuple[bytes, bytes, set[int]]] = {
    "length-shorter": (b"Content-Length: 100\r\n", GOOD, {400}),
    "length-zero": (b"Content-Length: 0\r\n", GOOD, {400}),
    "length-missing": (b"", GOOD, {400}),
    "length-negative": (b"Content-Length: -5\r\n", GOOD, {400}),
    "length-plus": (b"Content-Length: +5\r\n", GOOD, {400}),
    "length-word": (b"Content-Length: many\r\n", GOOD, {400}),
    "length-hexadecimal": (b"Content-Length: 0x10\r\n", GOOD, {400}),
    "length-empty": (b"Content-Length: \r\n", GOOD, {400}),
    "length-list": (b"Content-Length: " + LENGTH + b", " + LENGTH + b"\r\n", GOOD, {400}),
    "length-twice": (b"Content-Length: 5\r\nContent-Length: " + LENGTH + b"\r\n", GOOD, {400}),
    "length-2^40": (b"Content-Length: 1099511627776\r\n", GOOD, {413}),
    "length-2^63": (b"Content-Length: 9223372036854775808\r\n", GOOD, {400, 413}),
    "length-2^64": (b"Content-Length: 18446744073709551616\r\n", GOOD, {400, 413}),
    "length-5000-digits": (b"Content-Length: " + b"9" * 5000 + b"\r\n", GOOD, {400, 413}),
    "length-and-chunked": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n", {400}),
    "chunked-empty": (b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", {400}),
    "chunk-size-word": (b"Transfer-Encoding: chunked\r\n", b"xyz\r\n" + GOOD + b"\r\n0\r\n\r\n", {400}),
    "chunk-size-negative": (b"Transfer-Encoding: chunked\r\n", b"-5\r\n" + GOOD + b"\r\n0\r\n\r\n", {400}),
    "chunk-size-2^64": (b"Transfer-Encoding: chunked\r\n", b"10000000000000000\r\n" + GOOD, {400}),
    "chunk-size-too-small": (b"Transfer-Encoding: chunked\r\n", b"5\r\n" + GOOD + b"\r\n0\r\n\r\n", {400}),
    "chunk-of-bad-bytes": (b"Transfer-Encoding: chunked\r\n", b"9\r\n" + b"\xff" * 9 + b"\r\n0\r\n\r\n", {400}),
    "chunked-twice": (b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n", {400}),
    "gzip-transfer": (b"Transfer-Encoding: gzip, chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n", {400, 501}),
    "identity-transfer": (b"Transfer-Encoding: identity\r\n", GOOD, {400}),
}


@pytest.mark.parametrize("name", RAW_BODIES)
def test_lie_about_the_length_is_refused_and_leaves_nothing(target: Target, name: str) -> None:
    head, body, statuses = RAW_BODIES[name]
    before = target.stored.counts()
    started = time.perf_counter()
    answer = target.put_raw(head, body)
    seconds = time.perf_counter() - started
    assert answer.status in statuses, (answer.status, answer.body)
    assert answer.headers["content-type"] == "application/problem+json", answer.body
    assert seconds < 2 * MAX_SECONDS
    assert target.stored.counts() == before


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 60000\r\n", GOOD),
        (b"Content-Length: " + str(len(GOOD) + 1).encode() + b"\r\n", GOOD),
        (b"Transfer-Encoding: chunked\r\n", b"20\r\n" + GOOD[:32] + b"\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"FFFFFFF\r\n" + GOOD),
    ],
    ids=["length-longer", "length-one-more", "no-last-chunk", "chunk-longer"],
)
def test_upload_that_breaks_off_leaves_nothing(target: Target, head: bytes, body: bytes) -> None:
    before = target.stored.counts()
    answer = target.put_raw(head, body, half_close=True)
    assert answer.status in (0, 400)
    _await(lambda: target.stored.counts() == before)


def test_large_upload_that_breaks_off_leaves_no_chunk(target: Target) -> None:
    """Behind four mebibytes chunks are written ahead of the commit; they go when the connection does."""
    before = target.stored.counts()
    body = body_of(BIG_MODEL)
    request = (
        f"PUT {target.update_url(BIG_MODEL)} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {target.token}\r\n"
        f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    exchange(target.server.url, request.encode() + body[:-100], half_close=True)
    _await(lambda: target.stored.counts() == before)


def _await(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)
