"""What is transferred: updates as they are streamed, models as they lie on the disk, each known by its digest."""

import base64
import hashlib
import mmap
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast

from client_sdk.config import IN_MEMORY_BYTES, PIECE_BYTES
from client_sdk.errors import UntrustedAnswerError
from fl_protocol.arrays import Tensor, decode, encode
from fl_protocol.encodings.byte_shuffle import CODING, shuffled
from fl_protocol.identifiers import DIGEST_PATTERN
from fl_protocol.problems import ProblemError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OnBytes = Callable[[int, int], None]
"""Is told how many bytes of a download have arrived, and of how many."""

_DIGEST: Final = re.compile(DIGEST_PATTERN[1:-1], re.ASCII)


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
    """A model in a file whose bytes have the digest; `version` as the server says, None if it did not.

    `num_received` is how many bytes travelled for it, fewer where it came as a delta or compressed.
    """

    path: Path
    digest: str
    num_bytes: int
    version: int | None = None
    num_received: int = 0


class Pieces(Protocol):
    """Produces the same bytes each time, from byte `begin` on; what lies before that costs next to nothing."""

    def __call__(self, begin: int = 0, /) -> Iterable[bytes | memoryview]: ...


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes to upload, which can be produced again for each attempt, from wherever the last one was cut.

    `sha256` is the raw digest of what they are without `coding`, the Content-Encoding that they are sent with.
    """

    pieces: Pieces
    num_bytes: int
    sha256: bytes
    coding: str | None = None

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256.hex()}"

    @property
    def headers(self) -> dict[str, str]:
        """Content-Length, so that nothing is chunked, and what describes the whole."""
        return {"Content-Length": str(self.num_bytes), **self.description}

    @property
    def description(self) -> dict[str, str]:
        """Content-Digest (RFC 9530) and the coding, if there is one: what holds for the whole, however it is sent."""
        headers = {"Content-Digest": f"sha-256=:{base64.b64encode(self.sha256).decode()}:"}
        return headers if self.coding is None else headers | {"Content-Encoding": self.coding}

    async def stream(self, begin: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yields bytes `begin` to `end` in pieces, which are produced between two writes to the network."""
        left = (self.num_bytes if end is None else end) - begin
        for piece in self.pieces(begin):
            if left <= 0:
                return
            # httpx passes on whatever has a buffer; its types only say bytes.
            yield cast("bytes", piece[:left])
            left -= len(piece)


def body_of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Body:
    """Makes the safetensors body of tensors; it keeps them and holds 1 MiB of their encoding at a time."""
    return _measured(lambda begin=0: encode(tensors, metadata, begin=begin))


@contextmanager
def compressed_body(body: Body, *, level: int, folder: Path) -> Iterator[Body]:
    """Holds a body with its bytes shuffled and compressed: they are what is sent at each attempt.

    They are kept in a file without a name in `folder` where they are many; the tensors that they were made of are let
    go.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    compressor, sha256 = zstd.ZstdCompressor(level=level), body.sha256
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(folder)) as file:
        for block in shuffled(body.pieces()):
            file.write(compressor.compress(block))
        file.write(compressor.flush())
        del body

        def pieces(begin: int = 0, /) -> Iterator[bytes]:
            file.seek(begin)
            return iter(partial(file.read, PIECE_BYTES), b"")

        yield Body(pieces, file.tell(), sha256, coding=f"{CODING}, zstd")


def body_of_bytes(content: bytes) -> Body:
    """Makes the body of bytes that are encoded already."""
    view = memoryview(content)

    def pieces(begin: int = 0, /) -> Iterator[bytes]:
        return (bytes(view[at : at + PIECE_BYTES]) for at in range(begin, len(view), PIECE_BYTES))

    return _measured(pieces)


def _measured(pieces: Pieces) -> Body:
    hasher, num_bytes = hashlib.sha256(), 0
    for piece in pieces():
        hasher.update(piece)
        num_bytes += len(piece)
    return Body(pieces, num_bytes, hasher.digest())


def read_model(path: Path, expected: Content, *, was_just_checked: bool = False) -> dict[str, Tensor] | None:
    """Reads a stored model as views of its bytes; None if there is no such file or its bytes are others.

    What was downloaded this moment, and believed by its digest then, is not hashed again. A large file is not read into
    memory but mapped: what is not looked at is not there, and nothing changes a model's file in place. Raises
    UntrustedAnswerError if bytes with the right digest are not safetensors that can be relied on.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != expected.num_bytes:
                return None
            content = _contents(file, expected.num_bytes)
    except FileNotFoundError:
        return None
    if not was_just_checked and f"sha256:{hashlib.sha256(content).hexdigest()}" != expected.digest:
        return None
    return decoded(content)


def _contents(file: BinaryIO, num_bytes: int) -> bytes | mmap.mmap:
    # A mapping keeps a descriptor, and Windows does not remove a file that is mapped.
    if num_bytes < PIECE_BYTES or os.name != "posix":
        return file.read(num_bytes)
    return mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_READ)


def decoded(content: bytes | mmap.mmap) -> dict[str, Tensor]:
    """Decodes a model that the server sent; raises UntrustedAnswerError if it is not safetensors."""
    try:
        return decode(content)
    except ProblemError as error:
        raise UntrustedAnswerError(
            f"the server's model is not safetensors that can be relied on: {error.detail}"
        ) from None
