"""The one place where the SDK speaks HTTP.

It refuses to send a token over http:// to another machine, follows no redirect, keeps no cookie, reads no proxy or
certificate setting from the environment (a proxy would see the token: name it explicitly), and reads no more of an
answer than its ceiling. Only FedQuorumError comes out of it.
"""

import contextlib
import ipaddress
import random
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Final, TypeVar

import anyio
import httpx

from client_sdk.config import DEFAULT_LIMITS, MAX_ERROR_BYTES, Limits
from client_sdk.downloads import Download
from client_sdk.endpoints.exchange import Answer, Item, Page, Request, error_of
from client_sdk.errors import InsecureTransportError, TransportError, UntrustedAnswerError, UsageError, printable
from client_sdk.retries import retrying
from client_sdk.transfer import Body, Content, OnBytes, StoredModel
from client_sdk.uploads import NotResumableError, Upload

Parsed = TypeVar("Parsed")
Result = TypeVar("Result")

_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}", re.ASCII)
_CUT: Final = re.compile(r"disconnected|closed|connection|reset", re.IGNORECASE)
_PROXY_FAULT: Final = "the proxy did not let the request through"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What a test replaces: the transport, waiting and chance."""

    transport: httpx.AsyncBaseTransport | None = None
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    fraction: Callable[[], float] = random.random  # noqa: S311 - spreads retries, keeps no secret


def server_url(server: str, *, allow_insecure_http: bool) -> httpx.URL:
    """Checks a server's address; raises UsageError, or InsecureTransportError for http:// to another machine."""
    try:
        url = httpx.URL(server)
    except (httpx.InvalidURL, TypeError):
        raise UsageError(f"{printable(str(server))!r} is not an address such as https://fl.example.org") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise UsageError(f"{printable(server)!r} is not an address such as https://fl.example.org")
    if url.userinfo or url.query or url.fragment:
        raise UsageError(
            "the server's address holds a name, a query or a fragment; only host, port and path belong there"
        )
    if url.scheme == "http" and not allow_insecure_http and not _is_loopback(url.host):
        raise InsecureTransportError(
            f"http://{url.host} would show the token to anybody on the way: use https://, or allow_insecure_http=True"
        )
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _headers(token: str | None) -> dict[str, str]:
    headers = {"User-Agent": "fedquorum", "Accept-Encoding": "identity"}
    if token is None:
        return headers
    if _TOKEN.fullmatch(token) is None:
        raise UsageError("the token is empty or holds characters that no token has; is there a line break at its end?")
    return headers | {"Authorization": f"Bearer {token}"}


class Connection:
    """Sends requests to one server as one bearer of a token, again where that may help."""

    def __init__(
        self,
        url: httpx.URL,
        token: str | None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        seams: Seams | None = None,
    ) -> None:
        self.limits: Final = limits
        self._seams: Final = seams or Seams()
        self._http: Final = httpx.AsyncClient(
            base_url=url,
            headers=_headers(token),
            verify=True if ssl_context is None else ssl_context,
            proxy=proxy,
            transport=self._seams.transport,
            timeout=httpx.Timeout(limits.idle_seconds, connect=limits.connect_seconds),
            follow_redirects=False,
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def sleep(self, seconds: float) -> None:
        await self._seams.sleep(seconds)

    def jitter(self, seconds: float) -> float:
        return seconds * self._seams.fraction()

    async def call(self, request: Request[Parsed]) -> Parsed:
        """Sends a request and reads its answer."""
        return await self._retrying(lambda: self._send(request))

    async def gather(self, page_after: Callable[[str | None], Request[Page[Item]]]) -> list[Item]:
        """Reads a list page by page; raises UntrustedAnswerError for one that does not end."""
        items: list[Item] = []
        num_bytes = 0
        cursor: str | None = None
        seen: set[str] = set()
        while True:
            page = await self.call(page_after(cursor))
            items += page.items
            num_bytes += page.num_bytes
            cursor = page.next_cursor
            if cursor is None:
                return items
            is_too_long = len(items) > self.limits.max_items or num_bytes > self.limits.max_list_bytes
            if cursor in seen or not page.items or is_too_long:
                raise UntrustedAnswerError(f"the server's list does not end, after {len(items)} items")
            seen.add(cursor)

    async def upload(self, request: Request[Parsed], body: Body) -> Parsed:
        """Sends a request with a streamed body and reads its answer; a large one goes on where an attempt was cut."""
        whole = replace(request, headers={**request.headers, **body.headers})
        if request.uploads is None or body.num_bytes <= self.limits.resumable_bytes:
            return await self._retrying(lambda: self._send(whole, body.stream()))
        upload = Upload(request, request.uploads, body)
        try:
            return await self._retrying(lambda: upload.attempt(self._send), num_bytes=lambda: upload.offset)
        except NotResumableError:
            return await self._retrying(lambda: self._send(whole, body.stream()))

    async def _send(self, request: Request[Parsed], content: AsyncIterator[bytes] | None = None) -> Parsed:
        """Sends a request once, with a body that is streamed if there is one, and reads its answer."""
        seconds = self.limits.answer_seconds + request.wait_seconds
        with _translated(), anyio.fail_after(seconds if content is None else None) as scope:
            async with self._http.stream(
                request.method,
                request.path,
                params=dict(request.query) or None,
                headers=dict(request.headers),
                content=request.body if content is None else _timed(content, scope, seconds),
                timeout=self._timeout(request),
            ) as response:
                return await self._parsed(request, response)

    async def download(
        self,
        request: Request[None],
        folder: Path,
        *,
        expected: Content | None,
        base: StoredModel | None = None,
        on_bytes: OnBytes | None = None,
    ) -> StoredModel | None:
        """Downloads a model into `folder`; None if the server has nothing newer (204)."""
        limit = self.limits.max_model_bytes if expected is None else expected.num_bytes
        download = Download(folder, expected=expected, max_num_bytes=limit, base=base, on_bytes=on_bytes)

        def open_stream(headers: Mapping[str, str]) -> AbstractAsyncContextManager[httpx.Response]:
            return self.open(request, headers)

        with download.partial_file() as partial:
            try:
                return await self._retrying(
                    lambda: download.attempt(open_stream, partial), num_bytes=lambda: partial.num_bytes
                )
            except NothingThereError:
                return None

    @contextlib.asynccontextmanager
    async def open(self, request: Request[Parsed], headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """Opens an answer that is read as a stream; raises for a status that is no success."""
        stream = self._http.stream(
            request.method,
            request.path,
            params=dict(request.query) or None,
            headers={**request.headers, **headers},
            timeout=self._timeout(request),
        )
        with _translated():
            async with contextlib.AsyncExitStack() as stack:
                with anyio.fail_after(self.limits.answer_seconds + request.wait_seconds):
                    response = await stack.enter_async_context(stream)
                if response.status_code == 204:
                    raise NothingThereError
                if response.status_code not in {200, 206}:
                    raise error_of(await self._answer(response))
                yield response

    def _timeout(self, request: Request[Parsed]) -> httpx.Timeout:
        idle = self.limits.idle_seconds + request.wait_seconds
        return httpx.Timeout(idle, connect=self.limits.connect_seconds)

    async def _parsed(self, request: Request[Parsed], response: httpx.Response) -> Parsed:
        answer = await self._answer(response)
        if answer.status not in request.statuses:
            raise error_of(answer)
        return request.parse(answer)

    async def _answer(self, response: httpx.Response) -> Answer:
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UntrustedAnswerError("the server encoded an answer that was asked for as it is")
        refuses = response.status_code >= 400
        limit = min(MAX_ERROR_BYTES, self.limits.max_json_bytes) if refuses else self.limits.max_json_bytes
        body = bytearray()
        with anyio.fail_after(self.limits.answer_seconds):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) <= limit:
                    continue
                if refuses:
                    break
                raise UntrustedAnswerError(f"the server's answer is over {limit} bytes")
        return Answer(
            response.status_code, {name.lower(): value for name, value in response.headers.items()}, bytes(body)
        )

    async def _retrying(
        self, attempt: Callable[[], Awaitable[Result]], *, num_bytes: Callable[[], int] = lambda: 0
    ) -> Result:
        seams = self._seams
        return await retrying(attempt, self.limits, sleep=seams.sleep, fraction=seams.fraction, num_bytes=num_bytes)


async def _timed(content: AsyncIterator[bytes], scope: anyio.CancelScope, seconds: float) -> AsyncIterator[bytes]:
    """Yields a body; the time for the answer begins when all of it is sent."""
    async for piece in content:
        yield piece
    scope.deadline = anyio.current_time() + seconds


class NothingThereError(Exception):
    """The answer is 204: there is no model to download."""


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turns what httpx raises into the SDK's errors."""
    try:
        yield
    except httpx.RemoteProtocolError as error:
        if _CUT.search(str(error)):
            raise TransportError(f"the server cut the connection: {printable(str(error))}") from error
        raise UntrustedAnswerError(f"the server does not speak HTTP: {printable(str(error))}") from error
    except httpx.InvalidURL as error:
        raise UntrustedAnswerError(f"the server sends an address that is none: {printable(str(error))}") from error
    except (TimeoutError, httpx.TimeoutException) as error:
        raise TransportError("the server did not answer in time") from error
    except httpx.ProxyError as error:
        raise TransportError(f"{_PROXY_FAULT}: {printable(str(error))}") from error
    except httpx.HTTPError as error:
        raise TransportError(
            f"the server cannot be reached: {printable(str(error)) or type(error).__name__}"
        ) from error
