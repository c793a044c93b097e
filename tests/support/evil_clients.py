"""Clients that break a session, or try: participants of the SDK whose transport changes or swallows one message."""

import base64
import hashlib
from collections.abc import Callable
from typing import Final

import httpx

from fl_protocol.masking.messages import SHARE_RECORD_BYTES, UNMASK_RECORD_BYTES

Change = Callable[[bytes], bytes]

MESSAGES: Final = ("shares", "inputs", "consistency", "unmask")


class Vanished(BaseException):
    """The client is gone: nothing catches this, as nothing catches SIGKILL."""


class EvilTransport(httpx.AsyncBaseTransport):
    """Sends a client's requests, its message of one phase as `change` has it."""

    def __init__(self, phase: str, change: Change) -> None:
        self._phase = phase
        self._change = change
        self._inner = httpx.AsyncHTTPTransport(verify=False)
        self._is_gone = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._is_gone:
            raise Vanished
        if request.method == "PUT" and f"/{self._phase}/" in request.url.path:
            request = self._changed(request, await request.aread())
        return await self._inner.handle_async_request(request)

    def _changed(self, request: httpx.Request, body: bytes) -> httpx.Request:
        try:
            body = self._change(body)
        except Vanished:
            self._is_gone = True
            raise
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        return httpx.Request(
            request.method, request.url, headers={**headers, "content-digest": f"sha-256=:{digest}:"}, content=body
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


def vanishing(phase: str) -> EvilTransport:
    """Gives the transport of a client that is gone as soon as it would send its message of a phase."""

    def vanish(body: bytes) -> bytes:
        raise Vanished

    return EvilTransport(phase, vanish)


def sending_garbage() -> EvilTransport:
    """Gives the transport of a client whose input is no masked vector: unmasked, it throws the sum out of its range."""
    return EvilTransport("inputs", lambda body: b"\x5a" * len(body))


def sealing_garbage() -> EvilTransport:
    """Gives the transport of a client whose shares open for nobody."""
    return EvilTransport("shares", lambda body: _flipped(body, record_bytes=SHARE_RECORD_BYTES, at=20))


def answering_wrong() -> EvilTransport:
    """Gives the transport of a client that answers with other shares than it was dealt."""
    return EvilTransport("unmask", lambda body: _flipped(body, record_bytes=UNMASK_RECORD_BYTES, at=20))


def answering_both() -> EvilTransport:
    """Gives the transport of a client that answers with both shares of its first neighbour."""
    return EvilTransport("unmask", lambda body: body[:4] + b"s" + body[5:UNMASK_RECORD_BYTES] + body)


def _flipped(body: bytes, *, record_bytes: int, at: int) -> bytes:
    changed = bytearray(body)
    for record in range(0, len(body), record_bytes):
        changed[record + at] ^= 1
    return bytes(changed)
