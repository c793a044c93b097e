"""Receives a tensor body from the network: decompressed, hashed, decoded item by item and stored, never held whole."""

import asyncio
import base64
import hashlib
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from aggregator_service import failpoints
from aggregator_service.domain.uploads import UploadRecord
from aggregator_service.flow.context import Flow
from aggregator_service.storage.blobs import Blobs, BlobUpload, one_of_many
from fl_protocol.encodings.byte_shuffle import BlockCutter, unshuffle_block
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.streaming import Piece, StreamDecoder
from fl_protocol.tensors import Header

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_NUM_BYTES: Final = 1 << 20
_SHORT_NUM_BYTES: Final = 64 << 10
"""What is no longer is hashed and checked faster than a thread is asked to."""

_WINDOW_LOG_MAX: Final = 23


class ContentCoding(StrEnum):
    """How a body is coded on the wire."""

    IDENTITY = "identity"
    ZSTD = "zstd"
    SHUFFLED_ZSTD = "byte-shuffle, zstd"


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body as it arrives; `digest` is what its sender announced."""

    chunks: AsyncIterator[bytes]
    coding: ContentCoding
    digest: str | None


@dataclass(frozen=True, slots=True)
class Received:
    """A body that was checked and is waiting to be named by a row; `part` is the upload that has kept it so far."""

    upload: BlobUpload
    digest: str
    header: Header
    part: UploadRecord | None = None


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes of a known number that are waiting to be named by a row."""

    upload: BlobUpload
    digest: str


class Receiver:
    """The synchronous part: turns wire bytes into stored bytes, a digest and pieces."""

    def __init__(self, upload: BlobUpload, decoder: StreamDecoder, on_piece: Callable[[Piece], None]) -> None:
        self.upload = upload
        self.hash = hashlib.sha256()
        self._decoder = decoder
        self._on_piece = on_piece

    def take(self, data: bytes) -> None:
        """Checks and stores what comes next."""
        self.hash.update(data)
        for piece in self._decoder.feed(data):
            self._on_piece(piece)
        self.upload.append(data)

    def finish(self, blobs: Blobs, last: bytes, announced: str | None) -> str:
        """Takes the last piece, makes all of it durable and gives its digest."""
        self.take(last)
        if self.upload.is_due:
            blobs.flush_blocking(self.upload)
            failpoints.reach("intake.chunks_stored")
        digest = self.close(announced)
        blobs.finish_blocking(self.upload)
        return digest

    def close(self, announced: str | None) -> str:
        """Gives the digest of a body that has ended; raises what is wrong with all of it."""
        self._decoder.close()
        digest = f"sha256:{self.hash.hexdigest()}"
        _check_digest(digest, announced)
        return digest


async def receive(flow: Flow, body: Body, *, decoder: StreamDecoder, on_piece: Callable[[Piece], None]) -> Received:
    """Receives, checks and stores a body; on any failure nothing of it stays.

    Raises whatever the decoder or `on_piece` raise, `digest-mismatch` if the body is not what was announced, and
    `malformed-update` for a broken compressed stream.
    """
    upload, last = BlobUpload(flow.new_id("blob")), b""
    receiver = Receiver(upload, decoder, on_piece)
    try:
        async for data in _decoded(gathered(body.chunks), body.coding):
            if len(data) >= PIECE_NUM_BYTES:
                await asyncio.to_thread(receiver.take, data)
            elif body.coding is ContentCoding.IDENTITY:
                # Only the last piece is short: what is left to do with it, and after it, takes one turn of a thread.
                last = data
            else:
                receiver.take(data)
            if upload.is_due:
                await flow.blobs.flush(upload)
                failpoints.reach("intake.chunks_stored")
        if upload.num_bytes + len(last) > _SHORT_NUM_BYTES or flow.blobs.waits_for_disk(upload):
            digest = await flow.blobs.threaded(receiver.finish, flow.blobs, last, body.digest)
        else:
            digest = receiver.finish(flow.blobs, last, body.digest)
    except BaseException:
        await asyncio.shield(flow.blobs.discard(upload))
        raise
    return Received(upload, digest, decoder.header)


async def discard(flow: Flow, received: Received) -> None:
    """Removes a body that nothing will name, unless an upload keeps it."""
    if received.part is None:
        await flow.blobs.discard(received.upload)


async def store_exactly(flow: Flow, body: Body, *, num_bytes: int, what: str) -> StoredBytes:
    """Receives and stores a body of so many bytes; on any failure nothing of it stays.

    Raises `invalid-message` for another number and `digest-mismatch` if the body is not what was announced.
    """
    received = await store_behind_head(flow, body, num_head_bytes=0, num_bytes=num_bytes, what=what)
    return received.stored


@dataclass(frozen=True, slots=True)
class HeadedBytes:
    """A body whose first bytes are kept apart from the rest, which is stored; `digest` is that of all of it."""

    head: bytes
    stored: StoredBytes
    digest: str


class _Keeper:
    """The synchronous part: keeps the head of a body apart, and hashes and collects what is stored behind it."""

    def __init__(self, upload: BlobUpload, *, num_head_bytes: int) -> None:
        self.upload = upload
        self.head = bytearray()
        self._num_head_bytes = num_head_bytes
        self._whole = hashlib.sha256()
        self._rest = hashlib.sha256() if num_head_bytes else self._whole

    @property
    def num_bytes(self) -> int:
        return len(self.head) + self.upload.num_bytes

    def take(self, data: bytes) -> None:
        taken = data[: self._num_head_bytes - len(self.head)]
        behind = memoryview(data)[len(taken) :]
        self.head += taken
        self._whole.update(data)
        if self._rest is not self._whole:
            self._rest.update(behind)
        self.upload.append(behind)

    def kept(self) -> HeadedBytes:
        stored = StoredBytes(self.upload, f"sha256:{self._rest.hexdigest()}")
        return HeadedBytes(bytes(self.head), stored, f"sha256:{self._whole.hexdigest()}")


async def store_behind_head(flow: Flow, body: Body, *, num_head_bytes: int, num_bytes: int, what: str) -> HeadedBytes:
    """Receives a body of so many bytes, and stores all but its head; on any failure nothing of it stays.

    All members of a session send at once: what has come of a body waits in nothing but its chunk, which is written as
    soon as it is full. Raises what `store_exactly` raises.
    """
    upload = one_of_many(flow.new_id("blob"), num_bytes=num_bytes - num_head_bytes)
    keeper = _Keeper(upload, num_head_bytes=num_head_bytes)
    try:
        async for data in _decoded(body.chunks, body.coding):
            _check_number(keeper.num_bytes + len(data), expected=num_bytes, what=what, is_all=False)
            if len(data) > _SHORT_NUM_BYTES:
                await asyncio.to_thread(keeper.take, data)
            else:
                keeper.take(data)
            del data
            if upload.is_due:
                await flow.blobs.flush(upload)
        _check_number(keeper.num_bytes, expected=num_bytes, what=what, is_all=True)
        kept = keeper.kept()
        _check_digest(kept.digest, body.digest)
        await flow.blobs.finish(upload)
    except BaseException:
        await asyncio.shield(flow.blobs.discard(upload))
        raise
    return kept


def _check_number(num_bytes: int, *, expected: int, what: str, is_all: bool) -> None:
    if num_bytes > expected or (is_all and num_bytes < expected):
        raise ProblemError(ProblemType.INVALID_MESSAGE, f"{what}: {num_bytes} bytes instead of {expected}")


async def gather(body: Body, *, max_num_bytes: int) -> bytes:
    """Reads a small body; raises `too-large` and `digest-mismatch`."""
    data = bytearray()
    async for piece in _decoded(body.chunks, body.coding):
        data += piece
        if len(data) > max_num_bytes:
            raise ProblemError(ProblemType.TOO_LARGE, f"the body has more than {max_num_bytes} bytes")
    _check_digest(f"sha256:{hashlib.sha256(data).hexdigest()}", body.digest)
    return bytes(data)


async def digest_of(body: Body, *, max_num_bytes: int) -> str:
    """Hashes a body without keeping it; raises `too-large`."""
    total = 0
    hasher = hashlib.sha256()
    async for data in _decoded(gathered(body.chunks), body.coding):
        total += len(data)
        if total > max_num_bytes:
            raise ProblemError(ProblemType.TOO_LARGE, f"the body has more than {max_num_bytes} bytes")
        hasher.update(data)
    digest = f"sha256:{hasher.hexdigest()}"
    _check_digest(digest, body.digest)
    return digest


def parse_content_digest(header: str | None) -> str | None:
    """Reads the sha-256 of a Content-Digest header (RFC 9530); other algorithms are ignored.

    Raises `invalid-request` when its sha-256 member cannot be read.
    """
    for member in (header or "").split(","):
        name, _, value = member.strip().partition("=")
        if name.strip().lower() != "sha-256":
            continue
        value = value.strip()
        try:
            raw = base64.b64decode(value[1:-1], validate=True)
        except ValueError:
            raw = b""
        if len(raw) != 32 or value[:1] != ":" or value[-1:] != ":":
            raise ProblemError(
                ProblemType.INVALID_REQUEST, "Content-Digest must be sha-256=:BASE64: with 32 bytes (RFC 9530)"
            )
        return f"sha256:{raw.hex()}"
    return None


def _check_digest(digest: str, announced: str | None) -> None:
    if announced is not None and announced != digest:
        raise ProblemError(
            ProblemType.DIGEST_MISMATCH, f"Content-Digest announced {announced}, the body that arrived has {digest}"
        )


def _refuse_leftover(decompressor: zstd.ZstdDecompressor) -> None:
    if decompressor.eof and decompressor.unused_data:
        raise ProblemError(ProblemType.MALFORMED_UPDATE, "bytes follow the zstd frame; send a single frame")


async def gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Joins the network's small chunks into pieces of about 1 MiB."""
    parts: list[bytes] = []
    num_bytes = 0
    async for chunk in chunks:
        parts.append(chunk)
        num_bytes += len(chunk)
        del chunk
        if num_bytes >= PIECE_NUM_BYTES:
            yield _taken(parts)
            num_bytes = 0
    if num_bytes:
        yield _taken(parts)


def _taken(parts: list[bytes]) -> bytes:
    """Empties what was gathered before it is handed on: whoever takes it may take long, and there would be two."""
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    parts.clear()
    return data


def _decoded(pieces: AsyncIterator[bytes], coding: ContentCoding) -> AsyncIterator[bytes]:
    if coding is ContentCoding.IDENTITY:
        return pieces
    plain = _decompressed(pieces)
    return _unshuffled(plain) if coding is ContentCoding.SHUFFLED_ZSTD else plain


async def _unshuffled(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    cutter = BlockCutter()
    async for piece in pieces:
        for block in cutter.feed(piece):
            yield unshuffle_block(block)
    if last := cutter.close():
        yield unshuffle_block(last)


async def _decompressed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    # One frame with a window of at most 8 MiB, decompressed at most 1 MiB at a time: a bomb costs one piece.
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})
    async for piece in pieces:
        data: bytes = piece
        while data or not (decompressor.needs_input or decompressor.eof):
            yield _decompress(decompressor, data)
            data = b""
    if not decompressor.eof:
        raise ProblemError(ProblemType.MALFORMED_UPDATE, "the zstd stream ends before its frame does")


def _decompress(decompressor: zstd.ZstdDecompressor, data: bytes) -> bytes:
    if decompressor.eof:
        raise ProblemError(ProblemType.MALFORMED_UPDATE, "bytes follow the zstd frame; send a single frame")
    try:
        output = decompressor.decompress(data, PIECE_NUM_BYTES)
    except zstd.ZstdError as error:
        raise ProblemError(
            ProblemType.MALFORMED_UPDATE, f"the zstd stream cannot be read ({error}); its window may be 8 MiB at most"
        ) from None
    _refuse_leftover(decompressor)
    return output
