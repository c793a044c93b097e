"""One model on its way into a folder: goes on after a cut, in whatever form it travels, and is believed by its digest.

Where the caller has an earlier version, the model may travel as a delta from that, or in zstd. Then its bytes are kept
as they come, so that they too can go on after a cut, and are turned into the model once all are there.

A download fills a file of its own beside its target and takes the target's name (the digest's digits) once every byte
is there and the digest agrees. Whoever reads the file checks the digest again, so nothing waits for the disk here: what
a power cut spoils is downloaded anew. No string of the server becomes a path.
"""

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial as bound
from pathlib import Path
from typing import Any, BinaryIO, Final

import anyio.to_thread
import httpx

from client_sdk.config import PIECE_BYTES
from client_sdk.errors import DeltaRefusedError, TransportError, UntrustedAnswerError
from client_sdk.transfer import Content, OnBytes, StoredModel
from fl_protocol import model_deltas
from fl_protocol.model_deltas import HEAD_NUM_BYTES, DeltaError, DeltaHead
from fl_protocol.models import DELTA_MEDIA_TYPE, MODEL_VERSION_HEADER

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OpenStream = Callable[[Mapping[str, str]], AbstractAsyncContextManager[httpx.Response]]
"""Sends the request for a model with further headers and gives the open answer, whose status is 200 or 206."""

_TAG: Final = re.compile(r"(sha256:[0-9a-f]{64})(?::[0-9a-z_]{1,16}:[0-9a-f]{1,64})?", re.ASCII)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,18}", re.ASCII)


class _Kind(Enum):
    PLAIN = auto()
    ZSTD = auto()
    DELTA = auto()


@dataclass(frozen=True, slots=True)
class _Form:
    """What travels: its kind and size, the tag by which more of it is asked for, and the digest of the model."""

    kind: _Kind
    num_bytes: int
    tag: str
    digest: str


class Download:
    """One model on its way into `folder`; `attempt` is called until it succeeds and goes on where it was cut.

    `expected` is None for a model of which nothing is known before: then the first answer's ETag and length bind.
    With `base`, a version that is at hand, the model may travel in fewer bytes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        expected: Content | None,
        max_num_bytes: int,
        base: StoredModel | None = None,
        on_bytes: OnBytes | None = None,
    ) -> None:
        self._folder = folder
        self._expected = expected
        self._max_num_bytes = max_num_bytes
        self._base = base
        self._on_bytes = on_bytes
        self._form: _Form | None = None
        self._version: int | None = None

    @contextmanager
    def partial_file(self) -> Iterator["_Partial"]:
        """Holds the file that attempts fill; it is gone afterwards unless it took its target's name."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{secrets.token_hex(16)}.part"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            with os.fdopen(descriptor, "w+b", buffering=PIECE_BYTES) as file:
                yield _Partial(path, file)
        finally:
            path.unlink(missing_ok=True)

    async def attempt(self, open_stream: OpenStream, partial: "_Partial") -> StoredModel:
        """Fetches what is missing; raises UntrustedAnswerError for anything but the expected bytes."""
        async with open_stream(self._request_headers(partial)) as response:
            form = self._announced(response)
            if response.status_code == 206:
                _check_range(response.headers.get("content-range", ""), start=partial.num_bytes, total=form.num_bytes)
            else:
                partial.restart()
            self._form = form
            # As it comes: what httpx gathers into larger pieces is lost when the connection is cut.
            async for piece in response.aiter_raw():
                partial.take(piece, form.num_bytes)
                if self._on_bytes is not None:
                    self._on_bytes(partial.num_bytes, form.num_bytes)
        if partial.num_bytes < form.num_bytes:
            raise TransportError(f"the answer ended after {partial.num_bytes} of {form.num_bytes} bytes")
        return await anyio.to_thread.run_sync(self._finish, form, partial)

    def _request_headers(self, partial: "_Partial") -> dict[str, str]:
        headers = {} if self._base is None else {"Accept-Encoding": "zstd"}
        if self._form is None or partial.num_bytes == 0:
            return headers
        return headers | {"Range": f"bytes={partial.num_bytes}-", "If-Range": f'"{self._form.tag}"'}

    def _announced(self, response: httpx.Response) -> _Form:
        kind = self._kind(response.headers)
        version = response.headers.get(MODEL_VERSION_HEADER, "")
        self._version = int(version) if _NUMBER.fullmatch(version) else None
        tag = response.headers.get("etag", "").strip().strip('"')
        if response.status_code != 206:
            return self._first_announcement(response, kind, tag)
        form = self._form
        if form is None or form.kind is not kind or tag not in ("", form.tag):
            raise UntrustedAnswerError("the server sends a part of something else than was asked for")
        return form

    def _kind(self, headers: httpx.Headers) -> _Kind:
        coding = headers.get("content-encoding", "identity").strip().lower()
        is_delta = headers.get("content-type", "").partition(";")[0].strip().lower() == DELTA_MEDIA_TYPE
        if self._base is not None and is_delta and coding == "identity":
            return _Kind.DELTA
        if self._base is not None and not is_delta and coding == "zstd":
            return _Kind.ZSTD
        if is_delta or coding != "identity":
            raise UntrustedAnswerError("the server encoded a model that was asked for as it is")
        return _Kind.PLAIN

    def _first_announcement(self, response: httpx.Response, kind: _Kind, tag: str) -> _Form:
        expected, named = self._expected, _TAG.fullmatch(tag)
        if expected is not None and tag and (named is None or named[1] != expected.digest):
            raise UntrustedAnswerError("the server's ETag is not the digest of the model that was asked for")
        if expected is not None and kind is _Kind.PLAIN:
            if tag not in ("", expected.digest):
                raise UntrustedAnswerError("the server's ETag is not the digest of the model that was asked for")
            return _Form(kind, expected.num_bytes, expected.digest, expected.digest)
        length = response.headers.get("content-length", "")
        if named is None or _NUMBER.fullmatch(length) is None:
            raise UntrustedAnswerError("the server sends a model without its digest as ETag and its Content-Length")
        if not 0 < int(length) <= self._max_num_bytes:
            raise UntrustedAnswerError(f"the server's model of {length} bytes is over {self._max_num_bytes} bytes")
        return _Form(kind, int(length), tag, named[1])

    def _finish(self, form: _Form, partial: "_Partial") -> StoredModel:
        if form.kind is _Kind.PLAIN:
            return self._keep(form, partial, num_received=partial.num_bytes)
        with self.partial_file() as decoded:
            limit = self._max_num_bytes if self._expected is None else self._expected.num_bytes
            for piece in self._decoded(form, partial):
                decoded.take(piece, limit)
            return self._keep(form, decoded, num_received=partial.num_bytes)

    def _keep(self, form: _Form, partial: "_Partial", *, num_received: int) -> StoredModel:
        if partial.digest != form.digest:
            raise UntrustedAnswerError(f"the server's model has the digest {partial.digest}, not {form.digest}")
        content = Content(form.digest, partial.num_bytes)
        path = partial.keep_as(self._folder / content.file_name)
        return StoredModel(path, content.digest, content.num_bytes, self._version, num_received)

    def _decoded(self, form: _Form, partial: "_Partial") -> Iterator[bytes]:
        if form.kind is _Kind.ZSTD:
            return _decompressed(partial.pieces())
        if self._base is None:
            raise AssertionError("a delta is only taken where there is a base")
        return _rebuilt(self._base, form.digest, partial)


def _decompressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yields what one zstd frame holds, at most 1 MiB at a time; whoever takes it bounds the whole."""
    frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: model_deltas.WINDOW_LOG_MAX})
    try:
        for piece in pieces:
            data = piece
            while not frame.eof and (data or not frame.needs_input):
                yield frame.decompress(data, PIECE_BYTES)
                data = b""
    except zstd.ZstdError as error:
        raise UntrustedAnswerError(f"the server's zstd stream cannot be read: {error}") from None


def _rebuilt(base: StoredModel, digest: str, partial: "_Partial") -> Iterator[bytes]:
    """Yields the model that a delta makes of its base; raises DeltaRefusedError."""
    try:
        with base.path.open("rb") as file:
            head = model_deltas.parse_head(next(partial.pieces(), b"")[:HEAD_NUM_BYTES])
            expected = DeltaHead(base.digest, digest, head.num_bytes)
            yield from model_deltas.apply(partial.pieces(), base=bound(_read, file.fileno()), expected=expected)
    except (DeltaError, OSError) as error:
        raise DeltaRefusedError(f"{base.path.name} and the server's delta do not make the model: {error}") from None


def _read(descriptor: int, begin: int, end: int) -> bytes:
    data = os.pread(descriptor, end - begin, begin)
    if len(data) != end - begin:
        raise DeltaError("the base is shorter than it was")
    return data


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

    def pieces(self) -> Iterator[bytes]:
        """Yields what has arrived, in pieces of 1 MiB."""
        self.file.flush()
        for begin in range(0, self.num_bytes, PIECE_BYTES):
            yield os.pread(self.file.fileno(), PIECE_BYTES, begin)

    def keep_as(self, target: Path) -> Path:
        self.file.flush()
        return self.path.replace(target)


def _check_range(content_range: str, *, start: int, total: int) -> None:
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    if match is None or (int(match[1]), int(match[3])) != (start, total):
        raise UntrustedAnswerError(f"the server resumes a download at another place than byte {start} of {total}")
