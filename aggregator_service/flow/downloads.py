"""Streams stored bytes in pieces of 1 MiB."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from aggregator_service.domain.records import TensorFile
from aggregator_service.flow.context import Flow

PIECE_NUM_BYTES: Final = 1 << 20


class Form(Enum):
    """In which form a file travels: as it is, in zstd, or as what turns another version into it."""

    PLAIN = auto()
    ZSTD = auto()
    DELTA = auto()


@dataclass(frozen=True, slots=True)
class Content:
    """What is downloaded: bytes of its own, if any, and then a blob's from `blob_begin` on.

    `digest` is the file's, `num_bytes` and `tag` (an entity tag without its quotes) are those of the form it is in.
    """

    version: int
    digest: str
    prefix: bytes
    blob_id: str
    blob_begin: int
    num_bytes: int
    form: Form = Form.PLAIN
    tag: str = ""

    def named(self, digest: str) -> "Content":
        """Gives the same content, as it is, with its digest."""
        return replace(self, digest=digest, tag=digest)


def content_of(file: TensorFile, *, version: int) -> Content:
    """Gives a file's bytes as they were stored; it belongs to a model version."""
    return Content(version, file.digest, b"", file.blob_id, 0, file.num_bytes, tag=file.digest)


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
