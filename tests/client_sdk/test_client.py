import json
from collections.abc import Callable

import pytest

from client_sdk.client import AggregatorClient, Seams
from client_sdk.config import Limits
from client_sdk.endpoints import NothingToDo
from client_sdk.endpoints.events import EventReader
from client_sdk.errors import (
    InsecureTransportError,
    NotFoundError,
    ServerError,
    TransportError,
    UnauthenticatedError,
    UntrustedAnswerError,
    UsageError,
)
from fl_protocol.tasks import EnrolmentTokenRequest
from tests.client_sdk.wire import Seen, answer, wire

RUN_ID = "run_" + "a" * 32
TOKEN = b'{"token": "secret", "max_uses": 1, "expires_at": "2027-01-01T00:00:00Z", "a_new_field": [1]}'


async def no_sleep(seconds: float) -> None:
    """Waits for nothing."""


def client_to(url: str, **limits: int) -> AggregatorClient:
    return AggregatorClient(url, token="tok-en", limits=Limits(max_attempts=3, **limits), seams=Seams(sleep=no_sleep))


def problem(status: int, slug: str, *, retryable: bool = False) -> bytes:
    body = {"type": f"/problems/{slug}", "title": "T", "status": status, "detail": "d", "retryable": retryable}
    return answer(status, json.dumps(body).encode(), content_type="application/problem+json")


@pytest.mark.parametrize("server", ["http://fl.example.org", "http://10.0.0.1:8080", "http://127.0.0.1.example.org"])
def test_plain_http_stays_on_this_machine(server: str) -> None:
    with pytest.raises(InsecureTransportError):
        AggregatorClient(server)
    AggregatorClient(server, allow_insecure_http=True)


@pytest.mark.parametrize(
    "server", ["https://fl.example.org", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9"]
)
def test_tls_and_loopback_are_fine(server: str) -> None:
    AggregatorClient(server)


@pytest.mark.parametrize(
    "server", ["", "fl.example.org", "ftp://x", "https://u:p@x", "https://x/?a=b", "http://", "file:///x"]
)
def test_other_addresses_are_refused(server: str) -> None:
    with pytest.raises(UsageError):
        AggregatorClient(server)


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "ä", "x" * 5000])
def test_a_token_that_cannot_be_one_is_never_sent(token: str) -> None:
    with pytest.raises(UsageError):
        AggregatorClient("https://x", token=token)


@pytest.mark.parametrize("run_id", ["..", "a/b", "", "a?b", "a%2fb", "a b", "1", "a" * 200])
async def test_an_identifier_cannot_change_the_path(run_id: str) -> None:
    async with AggregatorClient("http://localhost:1") as client:
        with pytest.raises(UsageError):
            await client.get_run(run_id)


async def test_a_creation_has_one_key_over_all_attempts() -> None:
    answers = iter([answer(502), b"", answer(201, TOKEN)])
    async with wire(lambda seen: next(answers)) as server, client_to(server.url) as client:
        made = await client.create_enrolment_token(EnrolmentTokenRequest())
        assert made.token == "secret"
        assert len({seen.headers["idempotency-key"] for seen in server.seen}) == 1
        assert len({seen.body for seen in server.seen}) == 1
        await_count = len(server.seen)
    assert await_count == 3


async def test_a_refusal_is_its_exception_and_is_not_repeated() -> None:
    async with wire(lambda seen: problem(401, "unauthenticated")) as server, client_to(server.url) as client:
        with pytest.raises(UnauthenticatedError) as raised:
            await client.get_run(RUN_ID)
        assert raised.value.status == 401
        assert len(server.seen) == 1


async def test_a_retryable_problem_is_repeated() -> None:
    answers = iter([problem(500, "internal-error", retryable=True), problem(404, "not-found")])
    async with wire(lambda seen: next(answers)) as server, client_to(server.url) as client:
        with pytest.raises(NotFoundError):
            await client.get_run(RUN_ID)


async def test_a_page_of_a_proxy_is_a_plain_server_error() -> None:
    async with wire(lambda seen: answer(404, b"<html>")) as server, client_to(server.url) as client:
        with pytest.raises(ServerError, match="not a FedQuorum server"):
            await client.get_run(RUN_ID)


BAD_ANSWERS: dict[str, Callable[[Seen], bytes]] = {
    "redirect": lambda seen: answer(307, location="http://elsewhere.example/v1"),
    "not json": lambda seen: answer(200, b"\x80\x04\x95"),
    "another message": lambda seen: answer(200, b'{"hello": 1}'),
    "deep json": lambda seen: answer(200, b"[" * 100_000),
    "a huge integer": lambda seen: answer(200, b'{"run_id": ' + b"9" * 10_000 + b"}"),
    "too large": lambda seen: answer(200, b'"' + b"x" * 70_000 + b'"'),
    "endless": lambda seen: b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\n" + b"[" * 200_000,
    "encoded": lambda seen: answer(200, b"x", content_encoding="zstd"),
    "a broken problem": lambda seen: answer(400, b"{", content_type="application/problem+json"),
    "not http": lambda seen: b"SSH-2.0-OpenSSH\r\n\r\n",
    "a giant header": lambda seen: b"HTTP/1.1 200 X\r\nx: " + b"y" * 300_000 + b"\r\n\r\n",
    "an unasked status": lambda seen: answer(201, b"{}"),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
async def test_an_answer_that_cannot_be_trusted_is_one_clear_error(kind: str) -> None:
    async with wire(BAD_ANSWERS[kind]) as server, client_to(server.url, max_json_bytes=65_536) as client:
        with pytest.raises(UntrustedAnswerError) as raised:
            await client.get_run(RUN_ID)
        assert len(str(raised.value)) < 1000
        assert len(server.seen) == 1


async def test_no_server_is_a_transport_error_after_some_attempts() -> None:
    async with wire(lambda seen: b"") as server, client_to(server.url) as client:
        with pytest.raises(TransportError):
            await client.get_run(RUN_ID)
        assert len(server.seen) == 3


async def test_cookies_are_not_kept() -> None:
    async with (
        wire(lambda seen: answer(204, retry_after="2", set_cookie="a=b")) as server,
        client_to(server.url) as client,
    ):
        assert await client.claim_task(RUN_ID, wait_seconds=5) == NothingToDo(2.0)
        await client.claim_task(RUN_ID, wait_seconds=5)
        assert "cookie" not in server.seen[1].headers
        assert server.seen[0].target.endswith("/tasks?wait=5")


async def test_a_list_is_gathered_from_its_pages_and_must_end() -> None:
    item = (
        b'{"client_id": "c", "name": "a", "attributes": {}, "created_at": "2026-01-01T00:00:00Z",'
        b' "last_seen_at": null, "revoked_at": null}'
    )
    pages = iter([b'{"items": [%b], "next_cursor": "b"}' % item, b'{"items": [%b], "next_cursor": null}' % item])
    async with wire(lambda seen: answer(200, next(pages))) as server, client_to(server.url) as client:
        assert [found.name for found in await client.list_clients()] == ["a", "a"]
        assert server.seen[1].target == "/v1/clients?cursor=b"


async def test_a_list_without_an_end_is_not_trusted() -> None:
    endless = answer(200, b'{"items": [], "next_cursor": "b"}')
    async with wire(lambda seen: endless) as server, client_to(server.url) as client:
        with pytest.raises(UntrustedAnswerError, match="does not end"):
            await client.list_runs()


def event(number: int, kind: str = "round.opened", **data: object) -> bytes:
    message = {"event_id": number, "type": kind, "created_at": "2026-01-01T00:00:00Z", "data": data}
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(message)}\n\n".encode()


async def test_events_go_on_after_a_cut_without_a_gap() -> None:
    head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    streams = iter(
        [
            head + b": hello\n\n" + event(1) + event(2),
            head + event(3)[:10],
            head + event(3) + event(4, "run.state", state="completed") + event(5),
        ]
    )
    async with wire(lambda seen: next(streams)) as server, client_to(server.url) as client:
        numbers = [found.event_id async for found in client.events(RUN_ID)]
        assert numbers == [1, 2, 3, 4]
        assert [seen.headers.get("last-event-id") for seen in server.seen] == [None, "2", "2"]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_are_read_across_any_boundary(size: int) -> None:
    stream = (b": x\r\n\r\n" + event(1) + event(2)).replace(b"\n", b"\r\n")
    reader = EventReader(max_event_bytes=1000)
    found = [one for at in range(0, len(stream), size) for one in reader.feed(stream[at : at + size])]
    assert [one.event_id for one in found] == [1, 2]


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 2000, b"data: x\n" * 2000, b"data: {}\n\n", b"data: [[[\n\n"])
def test_a_broken_or_endless_event_is_not_trusted(stream: bytes) -> None:
    with pytest.raises(UntrustedAnswerError):
        list(EventReader(max_event_bytes=1000).feed(stream))
