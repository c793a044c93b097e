"""A driver that takes a run through its steps one by one, whatever the server dies of in between."""

import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.server import ServerProcess

PATIENCE_SECONDS = 60.0


@dataclass
class Insistent:
    """Repeats each request until it is answered, and starts the server anew whenever it has died."""

    server: ServerProcess
    faults: list[str] = field(default_factory=list)
    num_deaths: int = 0

    def send(self, http: httpx.Client, method: str, path: str, **request: Any) -> httpx.Response:
        """Gives the first answer that comes."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = http.request(method, path, **request)
            except httpx.TransportError:
                assert time.monotonic() < deadline
                self.revive()
                continue
            assert answer.status_code in (200, 201, 204), (path, answer.text)
            return answer

    def begin(self) -> None:
        """Starts the server with the next fault of the plan, if any is left."""
        armed = {"FEDQUORUM_FAILPOINT": f"{self.faults.pop(0)}:kill"} if self.faults else {}
        self.server.start(**armed)

    def revive(self) -> None:
        """Starts the server anew if it has died."""
        if not self.server.is_running():
            assert self.server.wait() == -9, self.server.log[-4000:]
            self.num_deaths += 1
            self.begin()


class InsistentTransport(httpx.BaseTransport):
    """Repeats each request of an HTTP client until it is answered, whatever the server dies of in between."""

    def __init__(self, insistent: Insistent) -> None:
        self._insistent = insistent
        self._inner = httpx.HTTPTransport(verify=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._inner.handle_request(request)
                answer.read()
            except httpx.TransportError:
                assert time.monotonic() < deadline
                self._insistent.revive()
                self._inner.close()
                self._inner = httpx.HTTPTransport(verify=False)
                continue
            return answer

    def close(self) -> None:
        self._inner.close()
