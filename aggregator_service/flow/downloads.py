"""Streams stored tensors in pieces of 1 MiB, as it is or compressed."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Final

from aggregator_service.domain.records import TensorFile
from aggregator_service.flow.context import Flow

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_NUM_BYTES: Final = 1 << 20
_COMPRESSION_LEVEL: Final = 3


async def plain(flow: Flow, file: TensorFile, *, begin: int, end: int) -> AsyncIterator[bytes]:
    """Yields the bytes [begin, end) of a file."""
    while begin < end:
        piece_end = min(end, (begin // PIECE_NUM_BYTES + 1) * PIECE_NUM_BYTES)
        yield await flow.blobs.read(file.blob_id, begin, piece_end)
        begin = piece_end


async def compressed(flow: Flow, file: TensorFile) -> AsyncIterator[bytes]:
    """Yields a whole file as one zstd frame."""
    compressor = zstd.ZstdCompressor(level=_COMPRESSION_LEVEL)
    async for piece in plain(flow, file, begin=0, end=file.num_bytes):
        if data := await asyncio.to_thread(compressor.compress, piece):
            yield data
    yield await asyncio.to_thread(compressor.flush)
