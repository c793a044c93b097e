"""A server that answers with whatever bytes a script yields, over real TCP; and a bystander that must hear nothing.

The first segment of a path names the case, so one server holds the whole corpus and every case has an address of its
own: `http://127.0.0.1:PORT/CASE`.
"""

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

PATIENCE_SECONDS: Final = 20.0
"""The longest that a connection is held for a client that neither reads nor leaves."""


class Hold:
    """Yielded by a script that goes on only when the client has left."""


HOLD: Final = Hold()


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived; `path` is without the case, `count` says how many came for it before this one."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    count: int


Script = Callable[[Seen], Iterator[bytes | Hold]]
"""Yields what is sent; the connection closes at its end."""

Route = Callable[[Seen], Script]


class _Server(socketserver.ThreadingTCPServer):
    """Hands each connection to `talk`; its threads are joined when it closes."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, talk: Callable[["_Conversation"], None]) -> None:
        self.talk = talk
        super().__init__(("127.0.0.1", 0), _Conversation)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a client that left; every other error is the test's and is shown."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            raise  # noqa: PLE0704 - socketserver calls this while it handles the error


class _Conversation(socketserver.StreamRequestHandler):
    server: _Server
    timeout = PATIENCE_SECONDS

    def handle(self) -> None:
        self.server.talk(self)


@contextlib.contextmanager
def _serving(talk: Callable[[_Conversation], None]) -> Iterator[str]:
    with _Server(talk) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@dataclass
class HostileServer:
    """Serves the cases; `requests` keeps what each was asked, as `METHOD path`."""

    routes: dict[str, Route]
    requests: dict[str, list[Seen]] = field(default_factory=dict)
    url: str = ""

    @contextlib.contextmanager
    def serving(self) -> Iterator["HostileServer"]:
        with _serving(self._talk) as address:
            self.url = f"http://{address}"
            yield self

    def _talk(self, conversation: _Conversation) -> None:
        case, request = self._read(conversation)
        if request is None:
            return
        self.requests[case].append(request)
        for piece in self.routes[case](request)(request):
            if isinstance(piece, bytes):
                conversation.wfile.write(piece)
            else:
                conversation.rfile.read(1)

    def _read(self, conversation: _Conversation) -> tuple[str, Seen | None]:
        line = conversation.rfile.readline(65_536).decode("latin-1").split()
        if len(line) != 3:
            return "", None
        case, _, path = line[1].removeprefix("/").partition("/")
        headers: dict[str, str] = {}
        while text := conversation.rfile.readline(65_536).decode("latin-1").strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        body = conversation.rfile.read(int(headers.get("content-length", 0)))
        plain = f"/{path}".partition("?")[0]
        before = self.requests.setdefault(case, [])
        count = sum((seen.method, seen.path) == (line[0], plain) for seen in before)
        return case, Seen(line[0], plain, headers, body, count)


@dataclass
class Bystander:
    """Another host: whatever reaches it was sent where it must not go."""

    heard: list[bytes] = field(default_factory=list)
    address: str = ""

    @contextlib.contextmanager
    def listening(self) -> Iterator["Bystander"]:
        with _serving(self._talk) as address:
            self.address = address
            yield self

    def _talk(self, conversation: _Conversation) -> None:
        conversation.request.settimeout(1)
        self.heard.append(conversation.rfile.readline(65_536))
