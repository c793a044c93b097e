"""How far bodies are read ahead: all together have a bound, and one that was answered early is read to its end."""

import asyncio
import itertools
import re

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from aggregator_service.api.arrivals import Arrivals
from aggregator_service.api.http_protocol import BoundedHttpProtocol
from tests.support.raw import connect, read_answer
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("num_bodies", "num_bytes"), [(1, 256 << 10), (16, 256 << 10), (100, 41943), (10_000, 16 << 10)]
)
def test_a_body_is_read_in_pieces_that_shrink_with_the_number_of_bodies(num_bodies: int, num_bytes: int) -> None:
    arrivals = Arrivals()
    for _ in range(num_bodies):
        arrivals.begin()
    assert arrivals.room(is_begun=True) == len(arrivals.buffer(arrivals.room(is_begun=True))) == num_bytes
    for _ in range(num_bodies):
        arrivals.end()
    assert arrivals.room(is_begun=True) == 256 << 10


def test_a_hundred_bodies_that_nobody_takes_are_read_ahead_by_less_than_8_mebibytes() -> None:
    arrivals, waiting = Arrivals(), list[int]()
    for _ in range(100):
        # Each comes with its head, as much of it as the first read takes.
        waiting.append(arrivals.room(is_begun=False))
        arrivals.begin()
    for body in itertools.cycle(range(100)):
        if all(map(arrivals.is_much, waiting)):
            break
        if not arrivals.is_much(waiting[body]):
            waiting[body] += arrivals.room(is_begun=True)
    assert sum(waiting) < 8 * MEBIBYTE


def test_a_large_body_that_is_refused_at_once_is_read_to_its_end_and_the_connection_goes_on(
    shared_server: ServerProcess,
) -> None:
    body = bytes(4 * MEBIBYTE)
    refused = f"PUT /nothing HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with connect(shared_server.url) as link:
        for _ in range(2):
            link.sendall(refused + body)
            assert read_answer(link).status == 404
        link.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_answer(link).status == 200


def test_short_bodies_are_kept_whole_as_long_as_they_have_room_together() -> None:
    arrivals = Arrivals()
    assert not arrivals.keep(MEBIBYTE + 1)
    assert [arrivals.keep(MEBIBYTE) for _ in range(17)] == [True] * 16 + [False]
    assert not arrivals.keep(1)
    arrivals.forget(MEBIBYTE)
    assert arrivals.keep(MEBIBYTE - 1)
    assert arrivals.keep(1)
    assert not arrivals.keep(1)


async def _late(_scope: Scope, receive: Receive, send: Send) -> None:
    """Answers once all of the body is there."""
    while (await receive()).get("more_body"):
        pass
    await _at_once(_scope, receive, send)


async def _at_once(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("app", [_late, _at_once], ids=["received", "answered-early"])
async def test_the_room_of_short_bodies_is_free_again_however_they_end(app: ASGIApp) -> None:
    arrivals = BoundedHttpProtocol._arrivals
    config = uvicorn.Config(app, http=BoundedHttpProtocol, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    listening = await asyncio.get_running_loop().create_server(
        lambda: BoundedHttpProtocol(config, state, {}), "127.0.0.1", 0
    )
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        body = bytes(MEBIBYTE)
        head = f"PUT / HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(head + body)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        # Another one is cut off in the middle of its body.
        writer.write(head + body[: MEBIBYTE // 2])
        await writer.drain()
        writer.close()
        await asyncio.to_thread(eventually, lambda: not state.connections and not arrivals._num_kept)
    assert arrivals._num_bodies == 0


def test_requests_that_come_at_once_have_each_its_own_body(shared_server: ServerProcess) -> None:
    """The second one comes while the first is kept, with a body that is longer than the head's bound."""
    bodies = [bytes([number]) * (200_000 + number) for number in range(3)]
    requests = [
        f"PUT /v1/tasks/{number}/update HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        for number, body in enumerate(bodies)
    ]
    with connect(shared_server.url) as link:
        link.sendall(b"".join(requests) + b"GET /healthz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        received = b""
        while part := link.recv(1 << 16):
            received += part
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"401"] * 3 + [b"200"]
