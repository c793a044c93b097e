"""Clients that break a session, or try: over the SDK, and as members that follow the protocol up to one message."""

from dataclasses import replace

import httpx

from fl_protocol.masking import messages
from fl_protocol.masking.messages import Kind, UnmaskShare
from tests.support.masked import MaskedClient


class Vanished(BaseException):
    """The client is gone: nothing catches this, as nothing catches SIGKILL."""


def vanishing(phase: str) -> httpx.AsyncBaseTransport:
    """Gives a transport over which a client is gone as soon as it would send its message of a phase."""
    return _Vanishing(phase)


class _Vanishing(httpx.AsyncBaseTransport):
    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._inner = httpx.AsyncHTTPTransport(verify=False)
        self._is_gone = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._is_gone = self._is_gone or (request.method == "PUT" and f"/{self._phase}/" in request.url.path)
        if self._is_gone:
            raise Vanished
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def garbage(num_bytes: int) -> bytes:
    """Gives a masked input that no honest client would send: unmasked, it throws the sum out of its range."""
    return b"\x5a" * num_bytes


def with_bad_shares(client: MaskedClient) -> bytes:
    """Gives a client's answer with every share changed: it does not fit the digests that the dealers announced."""
    right = messages.parse_unmask(client.answer(), num_members=len(client.part.cohort.roster.members))
    return messages.render_unmask(
        replace(share, share=bytes([0]) + bytes([share.share[1] ^ 1]) + bytes(share.share[2:])) for share in right
    )


def with_wrong_kinds(client: MaskedClient) -> bytes:
    """Gives a client's answer with a survivor's share said to be of its mask key."""
    shares = messages.parse_unmask(client.answer(), num_members=len(client.part.cohort.roster.members))
    first = shares[0]
    other = Kind.KEY if first.kind is Kind.SEED else Kind.SEED
    return messages.render_unmask((UnmaskShare(first.member, other, first.share), *shares[1:]))


def with_both_kinds(client: MaskedClient) -> bytes:
    """Gives a client's answer with both shares of its first neighbour."""
    right = client.answer()
    first = messages.parse_unmask(right, num_members=len(client.part.cohort.roster.members))[0]
    return UnmaskShare(first.member, Kind.KEY, first.share).render() + right
