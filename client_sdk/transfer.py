"""Models and updates on their way: streamed, resumed after a cut, and believed only when the digest agrees.

A download fills a file of its own beside its target and takes the target's name (the digest's digits) once every byte
is there and the digest agrees. Whoever reads the file checks the digest again, so nothing waits for the disk here: what
a power cut spoils is downloaded anew. No string of the server becomes a path.
"""

import base64
import hashlib
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import anyio.to_thread
import httpx

from client_sdk.config import PIECE_BYTES
from client_sdk.errors import TransportError, UntrustedAnswerError
from fl_protocol.arrays import Tensor, decode, encode
from fl_protocol.encodings.byte_shuffle import CODING, shuffled
from fl_protocol.identifiers import DIGEST_PATTERN
from fl_protocol.models import MODEL_VERSION_HEADER
from fl_protocol.problems import ProblemError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OpenStream = Callable[[Mapping[str, str]], AbstractAsyncContextManager[httpx.Response]]
"""Sends the request for a model with further headers and gives the open answer, whose status is 200 or 206."""

OnBytes = Callable[[int, int], None]
"""Is told how many bytes of a download have arrived, and of how many."""

_DIGEST: Final = re.compile(DIGEST_PATTERN[1:-1], re.ASCII)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Content:
    """What a download must be: its digest (`sha256:...`) and its size."""

    digest: str
    num_bytes: int

    @property
    def file_name(self) -> str:
        if _DIGEST.fullmatch(self.digest) is None:
            raise UntrustedAnswerError("a digest is not sha256: and 64 hexadecimal digits")
        return f"{self.digest.removeprefix('sha256:')}.safetensors"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in a file whose bytes have the digest; `version` as the server says, None if it did not."""

    path: Path
    digest: str
    num_bytes: int
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes to upload, which can be produced again for each attempt.

    `sha256` is the raw digest of what they are without `coding`, the Content-Encoding that they are sent with.
    """

    pieces: Callable[[], Iterable[bytes]]
    num_bytes: int
    sha256: bytes
    coding: str | None = None

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256.hex()}"

    @property
    def headers(self) -> dict[str, str]:
        """Content-Length, so that nothing is chunked, Content-Digest (RFC 9530) and the coding, if there is one."""
        encoded = base64.b64encode(self.sha256).decode()
        headers = {"Content-Length": str(self.num_bytes), "Content-Digest": f"sha-256=:{encoded}:"}
        return headers if self.coding is None else headers | {"Content-Encoding": self.coding}

    async def stream(self) -> AsyncIterator[bytes]:
        """Yields the pieces, which are produced between two writes to the network."""
        for piece in self.pieces():
            yield piece


def body_of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Body:
    """Makes the safetensors body of tensors; it keeps them and holds 1 MiB of their encoding at a time."""
    return _measured(lambda: encode(tensors, metadata))


def compressed_body(body: Body, *, level: int) -> Body:
    """Gives a body with its bytes shuffled and compressed, which are kept: they are what is sent at each attempt."""
    compressor = zstd.ZstdCompressor(level=level)
    pieces = [compressor.compress(block) for block in shuffled(body.pieces())]
    pieces.append(compressor.flush())
    content = body_of_bytes(b"".join(pieces))
    return replace(content, sha256=body.sha256, coding=f"{CODING}, zstd")


def body_of_bytes(content: bytes) -> Body:
    """Makes the body of bytes that are encoded already."""
    view = memoryview(content)
    return _measured(lambda: (bytes(view[at : at + PIECE_BYTES]) for at in range(0, len(view), PIECE_BYTES)))


def _measured(pieces: Callable[[], Iterable[bytes]]) -> Body:
    hasher, num_bytes = hashlib.sha256(), 0
    for piece in pieces():
        hasher.update(piece)
        num_bytes += len(piece)
    return Body(pieces, num_bytes, hasher.digest())


def read_model(path: Path, expected: Content) -> dict[str, Tensor] | None:
    """Reads a stored model as views of its bytes; None if there is no such file or its bytes are others.

    Raises UntrustedAnswerError if bytes with the right digest are not safetensors that can be relied on.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != expected.num_bytes:
                return None
            content = file.read(expected.num_bytes)
    except FileNotFoundError:
        return None
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != expected.digest:
        return None
    return decoded(content)


def decoded(content: bytes) -> dict[str, Tensor]:
    """Decodes a model that the server sent; raises UntrustedAnswerError if it is not safetensors."""
    try:
        return decode(content)
    except ProblemError as error:
        raise UntrustedAnswerError(
            f"the server's model is not safetensors that can be relied on: {error.detail}"
        ) from None


class Download:
    """One model on its way into `folder`; `attempt` is called until it succeeds and goes on where it was cut.

    `expected` is None for a model of which nothing is known before: then the first answer's ETag and length bind.
    """

    def __init__(
        self, folder: Path, *, expected: Content | None, max_num_bytes: int, on_bytes: OnBytes | None = None
    ) -> None:
        self._folder = folder
        self._expected = expected
        self._max_num_bytes = max_num_bytes
        self._on_bytes = on_bytes
        self._version: int | None = None

    @contextmanager
    def partial_file(self) -> Iterator["_Partial"]:
        """Holds the file that attempts fill; it is gone afterwards unless it took its target's name."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{secrets.token_hex(16)}.part"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            with os.fdopen(descriptor, "wb", buffering=PIECE_BYTES) as file:
                yield _Partial(path, file)
        finally:
            path.unlink(missing_ok=True)

    async def attempt(self, open_stream: OpenStream, partial: "_Partial") -> StoredModel:
        """Fetches what is missing; raises UntrustedAnswerError for anything but the expected bytes."""
        async with open_stream(self._range_headers(partial)) as response:
            expected = self._expected = self._announced(response)
            if response.status_code == 206:
                _check_range(
                    response.headers.get("content-range", ""), start=partial.num_bytes, total=expected.num_bytes
                )
            else:
                partial.restart()
            # As it comes: what httpx gathers into larger pieces is lost when the connection is cut.
            async for piece in response.aiter_raw():
                partial.take(piece, expected.num_bytes)
                if self._on_bytes is not None:
                    self._on_bytes(partial.num_bytes, expected.num_bytes)
        if partial.num_bytes < expected.num_bytes:
            raise TransportError(f"the answer ended after {partial.num_bytes} of {expected.num_bytes} bytes")
        if partial.digest != expected.digest:
            raise UntrustedAnswerError(f"the server's model has the digest {partial.digest}, not {expected.digest}")
        path = await anyio.to_thread.run_sync(partial.keep_as, self._folder / expected.file_name)
        return StoredModel(path, expected.digest, expected.num_bytes, self._version)

    def _range_headers(self, partial: "_Partial") -> dict[str, str]:
        if self._expected is None or partial.num_bytes == 0:
            return {}
        return {"Range": f"bytes={partial.num_bytes}-", "If-Range": f'"{self._expected.digest}"'}

    def _announced(self, response: httpx.Response) -> Content:
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UntrustedAnswerError("the server encoded a model that was asked for as it is")
        version = response.headers.get(MODEL_VERSION_HEADER, "")
        self._version = int(version) if _NUMBER.fullmatch(version) else None
        etag = response.headers.get("etag", "").strip().strip('"')
        expected = self._expected or self._first_announcement(response, etag)
        if etag and etag != expected.digest:
            raise UntrustedAnswerError("the server's ETag is not the digest of the model that was asked for")
        return expected

    def _first_announcement(self, response: httpx.Response, etag: str) -> Content:
        length = response.headers.get("content-length", "")
        if _DIGEST.fullmatch(etag) is None or _NUMBER.fullmatch(length) is None or response.status_code != 200:
            raise UntrustedAnswerError("the server sends a model without its digest as ETag and its Content-Length")
        if not 0 < int(length) <= self._max_num_bytes:
            raise UntrustedAnswerError(f"the server's model of {length} bytes is over {self._max_num_bytes} bytes")
        return Content(etag, int(length))


@dataclass(slots=True)
class _Partial:
    """The bytes that have arrived so far, on disk and in the digest."""

    path: Path
    file: BinaryIO
    num_bytes: int = 0
    hasher: Any = field(default_factory=hashlib.sha256)

    @property
    def digest(self) -> str:
        return f"sha256:{self.hasher.hexdigest()}"

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.num_bytes = 0
        self.hasher = hashlib.sha256()

    def take(self, piece: bytes, max_num_bytes: int) -> None:
        if self.num_bytes + len(piece) > max_num_bytes:
            raise UntrustedAnswerError(f"the server sends more than the {max_num_bytes} bytes that it announced")
        self.file.write(piece)
        self.hasher.update(piece)
        self.num_bytes += len(piece)

    def keep_as(self, target: Path) -> Path:
        self.file.flush()
        return self.path.replace(target)


def _check_range(content_range: str, *, start: int, total: int) -> None:
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    if match is None or (int(match[1]), int(match[3])) != (start, total):
        raise UntrustedAnswerError(f"the server resumes a download at another place than byte {start} of {total}")
