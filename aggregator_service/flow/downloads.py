"""Streams stored tensors in pieces of 1 MiB, as it is or compressed."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from aggregator_service.domain.records import TensorFile
from aggregator_service.flow.context import Flow

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_NUM_BYTES: Final = 1 << 20
_COMPRESSION_LEVEL: Final = 3


@dataclass(frozen=True, slots=True)
class Content:
    """What is downloaded: bytes of its own, if any, and then a blob's from `blob_begin` on."""

    version: int
    digest: str
    prefix: bytes
    blob_id: str
    blob_begin: int
    num_bytes: int

    def named(self, digest: str) -> "Content":
        """Gives the same content with its digest."""
        return replace(self, digest=digest)


def content_of(file: TensorFile, *, version: int) -> Content:
    """Gives a file's bytes as they were stored; it belongs to a model version."""
    return Content(version, file.digest, b"", file.blob_id, blob_begin=0, num_bytes=file.num_bytes)


async def plain(flow: Flow, content: Content, *, begin: int, end: int) -> AsyncIterator[bytes]:
    """Yields the bytes [begin, end) of a content."""
    own = len(content.prefix)
    if begin < own:
        yield content.prefix[begin : min(end, own)]
    # Pieces begin where the blob's chunks do, so that no chunk is read twice.
    at, stop = content.blob_begin + max(begin, own) - own, content.blob_begin + end - own
    while at < stop:
        piece_end = min(stop, (at // PIECE_NUM_BYTES + 1) * PIECE_NUM_BYTES)
        yield await flow.blobs.read(content.blob_id, at, piece_end)
        at = piece_end


async def compressed(flow: Flow, content: Content) -> AsyncIterator[bytes]:
    """Yields a whole content as one zstd frame."""
    compressor = zstd.ZstdCompressor(level=_COMPRESSION_LEVEL)
    async for piece in plain(flow, content, begin=0, end=content.num_bytes):
        if data := await asyncio.to_thread(compressor.compress, piece):
            yield data
    yield await asyncio.to_thread(compressor.flush)
