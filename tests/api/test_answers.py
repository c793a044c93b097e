"""Answers that go out by sendfile: exact, behind their heads, on connections that go on; slow readers are let go."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from aggregator_service.api import answers
from aggregator_service.api.answers import ZERO_COPY
from aggregator_service.api.http_protocol import BoundedHttpProtocol

SIZE = 24_000_000
"""Several times what the buffers of a socket hold."""


class Application:
    """Answers /BEGIN-END with these bytes of a file, and /plain with all of them in pieces; counts open descriptors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_open = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/open":
            await _answer(send, str(self.num_open).encode())
            return
        file = os.open(self._path, os.O_RDONLY)
        self.num_open += 1
        try:
            await self._send(scope["path"], file, send)
        finally:
            self.num_open -= 1
            os.close(file)

    async def _send(self, path: str, file: int, send: Any) -> None:
        begin, end = (0, SIZE) if path == "/plain" else map(int, path[1:].split("-"))
        headers = [(b"content-length", str(end - begin).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if path != "/plain":
            await send({"type": ZERO_COPY, "file": file, "offset": begin, "count": end - begin})
            return
        for at in range(0, SIZE, 1 << 20):
            piece = os.pread(file, 1 << 20, at)
            await send({"type": "http.response.body", "body": piece, "more_body": at + len(piece) < SIZE})


async def _answer(send: Any, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "content"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def connect(content: Path) -> Iterator[Callable[[], socket.socket]]:
    """Opens connections to a server with the service's own protocol, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        Application(content), http=BoundedHttpProtocol, loop="uvloop", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    opened: list[socket.socket] = []

    def opening() -> socket.socket:
        connection = socket.create_connection(listening.getsockname(), timeout=30)
        opened.append(connection)
        return connection

    yield opening
    for connection in opened:
        connection.close()
    server.should_exit = True
    thread.join(30)
    listening.close()


def _ask(connection: socket.socket, *paths: str) -> None:
    connection.sendall(b"".join(f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode() for path in paths))


def _body(connection: socket.socket) -> bytes:
    """Reads one answer and no more than that."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = bytearray()
    while len(body) < left:
        piece = connection.recv(min(1 << 20, left - len(body)))
        assert piece, "the connection ended within the body"
        body += piece
    return bytes(body)


def _await_none_open(connection: socket.socket) -> None:
    deadline = time.monotonic() + 10
    while True:
        _ask(connection, "/open")
        if _body(connection) == b"0":
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_parts_of_a_file_arrive_exactly_one_after_the_other(
    connect: Callable[[], socket.socket], content: Path
) -> None:
    whole, connection = content.read_bytes(), connect()
    for begin, end in ((0, SIZE), (0, 1), (SIZE - 1, SIZE), (12_345, 9_876_543), (7, 7)):
        _ask(connection, f"/{begin}-{end}")
        assert _body(connection) == whole[begin:end]
    _ask(connection, "/plain")
    assert _body(connection) == whole


def test_requests_that_were_sent_together_are_answered_in_order(
    connect: Callable[[], socket.socket], content: Path
) -> None:
    whole, connection = content.read_bytes(), connect()
    _ask(connection, "/0-5000000", "/plain", "/5-10")
    assert [_body(connection), _body(connection), _body(connection)] == [whole[:5_000_000], whole, whole[5:10]]


def test_others_are_answered_while_a_reader_stands_still(connect: Callable[[], socket.socket]) -> None:
    still, other = connect(), connect()
    _ask(still, f"/0-{SIZE}")
    still.recv(1)
    _ask(other, "/open")
    assert _body(other) == b"1"
    still.close()
    _await_none_open(other)


@pytest.mark.parametrize("path", [f"/0-{SIZE}", "/plain"])
@pytest.mark.parametrize("reading", ["nothing", "a few bytes at a time"])
def test_a_reader_that_is_too_slow_is_let_go(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch, path: str, reading: str
) -> None:
    monkeypatch.setattr(answers, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(answers, "MAX_SILENCE_SECONDS", 0.2 if reading == "nothing" else 60.0)
    monkeypatch.setattr(answers, "MIN_BYTES_A_SECOND", 10 * SIZE)
    slow, other = connect(), connect()
    _ask(slow, path)
    assert slow.recv(1)
    if reading != "nothing":
        assert _dripping(slow) < SIZE
    _await_none_open(other)


def _dripping(connection: socket.socket) -> int:
    """Reads at most 8 MB a second until the connection ends, and gives how much that was."""
    total = 0
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(40_000):
            total += len(piece)
            time.sleep(0.005)
    return total


def test_a_reader_that_keeps_the_pace_may_take_its_time(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch, content: Path
) -> None:
    monkeypatch.setattr(answers, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(answers, "MAX_SILENCE_SECONDS", 0.2)
    connection = connect()
    _ask(connection, f"/0-{SIZE}")
    head = connection.recv(1000)
    body = bytearray(head.partition(b"\r\n\r\n")[2])
    began = time.monotonic()
    while len(body) < SIZE and (piece := connection.recv(200_000)):
        body += piece
        time.sleep(0.005)
    assert bytes(body) == content.read_bytes()
    assert time.monotonic() - began > 0.3
