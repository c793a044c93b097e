"""Serves the application over HTTP: the listening socket, the line that says so, signals and draining."""

import gc
import ipaddress
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from aggregator_service.api.http_protocol import BoundedHttpProtocol
from aggregator_service.app import Service

_DRAIN_SECONDS: Final = 10
_BACKLOG: Final = 2048
_KEEP_ALIVE_SECONDS: Final = 20
"""Longer than clients keep an idle connection (httpx 5 s): who sends on one that is just being closed sends again."""
_COLLECTOR_THRESHOLDS: Final = (20_000, 20, 100)
"""A fifth more small updates a second than with Python's own (700, 10, 10): `python -m benchmarks small_updates`."""


class ListenError(Exception):
    """The server may not or cannot listen where it was told to; the message says what to do."""


def bind(host: str, port: int, *, behind_proxy: bool) -> socket.socket:
    """Takes the address to serve on; raises ListenError, also for one that would show tokens to the network."""
    if not behind_proxy and not _is_loopback(host):
        raise ListenError(
            f"listening on {host} without TLS would show tokens and updates to the network; put a TLS proxy in front "
            "and say so with --behind-proxy (FEDQUORUM_BEHIND_PROXY=true), or listen on 127.0.0.1"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    return listening


def run(service: Service, listening: socket.socket, *, announce: Callable[[str], None]) -> bool:
    """Serves until SIGTERM or SIGINT; `announce` gets the address once requests are answered. False: it never did."""
    server = _Server(service, listening, announce=announce)
    server.run(sockets=[listening])
    return server.started


class _Server(uvicorn.Server):
    """Says when it listens and lets held requests go when it stops."""

    def __init__(self, service: Service, listening: socket.socket, *, announce: Callable[[str], None]) -> None:
        super().__init__(
            uvicorn.Config(
                service.application,
                http=BoundedHttpProtocol,
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                # Nobody here asks for a client's address or scheme.
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
        )
        self._service = service
        self._listening = listening
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _spare_the_collector()
        if self.started:
            host, port = self._listening.getsockname()[:2]
            self._announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            sys.stdout.flush()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT as the wish to drain; uvicorn would raise them again afterwards and exit by them."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.drain()
        await super().shutdown(sockets)


def _spare_the_collector() -> None:
    """Leaves out of every garbage collection what lives as long as the process, and collects what requests leave later.

    Only cycles wait for it; arrays and bodies are freed by their reference counts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
