"""The delta format: what turns one model version's safetensors file into another's of the same layout, exactly.

A file of media type `application/vnd.fedquorum.delta` is a head of 80 bytes and one zstd frame:

    0    8   the ASCII characters FQDELTA1
    8   32   SHA-256 of the base file
    40  32   SHA-256 of the target file
    72   8   the target file's size, an unsigned little-endian integer
    80       a zstd frame with a window of at most 8 MiB

Decompressed, the frame holds the target's safetensors header with its 8 length bytes, as it is, and then for each
tensor, in the order of their bytes, its blocks: 1 MiB of the tensor's bytes each, the last one what is left. Read a
block's bytes of base and target as unsigned little-endian integers of the element's size (1, 2, 4 or 8 bytes, w bits).
Each becomes d = target - base modulo 2^w, zigzagged to z = 2d modulo 2^w if d < 2^(w-1), else 2(2^w - d) - 1; and the
block is written plane by plane: the lowest byte of every z, then the second byte of every z, up to the highest.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fl_protocol.dtypes import CARRIERS
from fl_protocol.problems import ProblemError
from fl_protocol.tensors import LENGTH_BYTES, Header, header_length, parse_header

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC: Final = b"FQDELTA1"
HEAD_NUM_BYTES: Final = 80
BLOCK_NUM_BYTES: Final = 1 << 20
WINDOW_LOG_MAX: Final = 23
_LEVEL: Final = 1
"""Higher levels save no more of what is nearly noise: 0.648 of the bytes at 1, 0.657 at 3, 0.661 at 6."""

Read = Callable[[int, int], bytes]
"""Gives the bytes [begin, end) of a file."""


class DeltaError(ValueError):
    """Bytes that are no delta, or not one for this base; the message says why."""


@dataclass(frozen=True, slots=True)
class DeltaHead:
    """Which file a delta makes of which: digests as `sha256:...`, the target's size in bytes."""

    base_digest: str
    target_digest: str
    num_bytes: int

    def render(self) -> bytes:
        """Writes the head's 80 bytes."""
        return MAGIC + _raw(self.base_digest) + _raw(self.target_digest) + self.num_bytes.to_bytes(8, "little")


def parse_head(data: bytes) -> DeltaHead:
    """Reads the first 80 bytes of a delta; raises DeltaError."""
    if len(data) != HEAD_NUM_BYTES or data[:8] != MAGIC:
        raise DeltaError(f"a delta begins with {MAGIC.decode()} and has a head of {HEAD_NUM_BYTES} bytes")
    return DeltaHead(f"sha256:{data[8:40].hex()}", f"sha256:{data[40:72].hex()}", int.from_bytes(data[72:80], "little"))


def have_one_layout(base: Header, target: Header) -> bool:
    """Tells whether a delta can lead from one file to another: the same tensors at the same places."""
    return base.tensors == target.tensors


def encode(head: DeltaHead, *, base: Read, target: Read) -> Iterator[bytes]:
    """Yields a delta; raises DeltaError where the files' layouts differ. It holds a few blocks."""
    base_header, (target_header, prefix) = read_header(base)[0], read_header(target)
    if not have_one_layout(base_header, target_header):
        raise DeltaError("the two files do not hold the same tensors at the same places")
    compressor = zstd.ZstdCompressor(level=_LEVEL)
    yield head.render() + compressor.compress(prefix)
    for begin, end, width in _blocks(target_header):
        old = base(base_header.data_start + begin, base_header.data_start + end)
        new = target(target_header.data_start + begin, target_header.data_start + end)
        yield compressor.compress(_difference(old, new, width))
    yield compressor.flush()


def apply(pieces: Iterable[bytes], *, base: Read, expected: DeltaHead) -> Iterator[bytes]:
    """Yields the target's bytes from a delta's, whose head must be the expected one; raises DeltaError.

    No more is decompressed than the target is large, and it holds a few blocks and one of the pieces. What was made is
    right if and only if its SHA-256 is the one that was expected, which the last step checks.
    """
    source = _Source(iter(pieces))
    if parse_head(source.head()) != expected:
        raise DeltaError("the delta is for another base or makes another target")
    base_header, _ = read_header(base)
    try:
        length = source.take(LENGTH_BYTES)
        text = source.take(header_length(length))
        header = parse_header(text)
    except ProblemError as error:
        raise DeltaError(f"the target's header cannot be relied on: {error.detail}") from None
    if not have_one_layout(base_header, header) or header.num_bytes != expected.num_bytes:
        raise DeltaError("the target does not hold the base's tensors at the base's places")
    hasher = hashlib.sha256(length + text)
    yield length + text
    for begin, end, width in _blocks(header):
        old = base(base_header.data_start + begin, base_header.data_start + end)
        new = _restored(old, source.take(end - begin), width)
        hasher.update(new)
        yield new
    source.close()
    if f"sha256:{hasher.hexdigest()}" != expected.target_digest:
        raise DeltaError("what the delta makes of the base does not have the target's digest")


def read_header(read: Read) -> tuple[Header, bytes]:
    """Reads a stored file's header and gives it with its bytes, the 8 of its length included."""
    length = read(0, LENGTH_BYTES)
    prefix = length + read(LENGTH_BYTES, LENGTH_BYTES + header_length(length))
    return parse_header(prefix[LENGTH_BYTES:]), prefix


def _blocks(header: Header) -> Iterator[tuple[int, int, int]]:
    """Yields (begin, end, element's bytes) within the data section."""
    for spec in header.tensors:
        for begin in range(spec.begin, spec.end, BLOCK_NUM_BYTES):
            yield begin, min(begin + BLOCK_NUM_BYTES, spec.end), CARRIERS[spec.dtype].itemsize


def _unsigned(data: bytes, width: int) -> NDArray[Any]:
    return np.frombuffer(data, np.dtype(f"<u{width}"))


def _difference(old: bytes, new: bytes, width: int) -> bytes:
    difference = _unsigned(new, width) - _unsigned(old, width)
    one, top = difference.dtype.type(1), difference.dtype.type(8 * width - 1)
    zigzagged = (difference << one) ^ (difference.dtype.type(0) - (difference >> top))
    return np.ascontiguousarray(zigzagged.view(np.uint8).reshape(-1, width).T).tobytes()


def _restored(old: bytes, block: bytes, width: int) -> bytes:
    planes = np.frombuffer(block, np.uint8).reshape(width, -1)
    # Plane by plane: to copy the transposed array costs three times as much.
    elements = np.empty((planes.shape[1], width), np.uint8)
    for number, plane in enumerate(planes):
        elements[:, number] = plane
    zigzagged = elements.reshape(-1).view(np.dtype(f"<u{width}"))
    one, zero = zigzagged.dtype.type(1), zigzagged.dtype.type(0)
    difference = (zigzagged >> one) ^ (zero - (zigzagged & one))
    restored: bytes = (_unsigned(old, width) + difference).tobytes()
    return restored


def _raw(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))


class _Source:
    """A delta's bytes, read in the amounts that are wanted, decompressed behind its head."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX})
        self._waiting = b""

    def head(self) -> bytes:
        data = bytearray()
        while len(data) < HEAD_NUM_BYTES and (piece := next(self._pieces, None)) is not None:
            data += piece
        self._waiting = bytes(data[HEAD_NUM_BYTES:])
        return bytes(data[:HEAD_NUM_BYTES])

    def take(self, num_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < num_bytes:
            data += self._more(num_bytes - len(data))
        return bytes(data)

    def close(self) -> None:
        """Checks that nothing follows."""
        while not self._frame.eof:
            if self._more(1):
                raise DeltaError("the delta holds more than the target")
        if self._frame.unused_data or next(self._pieces, None) is not None:
            raise DeltaError("bytes follow the delta's zstd frame")

    def _more(self, most: int) -> bytes:
        if self._frame.eof:
            raise DeltaError("the delta ends before the target does")
        if self._frame.needs_input and not self._waiting:
            piece = next(self._pieces, None)
            if piece is None:
                raise DeltaError("the delta was cut")
            self._waiting = piece
        data, self._waiting = self._waiting, b""
        try:
            return self._frame.decompress(data, most)
        except zstd.ZstdError as error:
            raise DeltaError(f"the delta's zstd frame cannot be read: {error}") from None
