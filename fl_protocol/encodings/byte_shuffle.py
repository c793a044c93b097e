"""The content coding `byte-shuffle`: the first bytes of every four, then the second ones, ..., block by block.

A body is cut into blocks of 1 MiB, the last one shorter. A block of L bytes is read as L // 4 rows of 4 bytes and
written column by column; the up to 3 bytes behind the last whole row follow as they are. The exponents of neighbouring
floats, and the high bytes of neighbouring indices, come to lie beside each other, which is what a compressor needs.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

CODING: Final = "byte-shuffle"
BLOCK_BYTES: Final = 1 << 20
_ROW_BYTES: Final = 4

Bytes = bytes | bytearray | memoryview


def shuffle_block(block: Bytes) -> bytes:
    """Shuffles one block."""
    whole, rest = _rows(block)
    return whole.reshape(-1, _ROW_BYTES).T.tobytes() + rest


def unshuffle_block(block: Bytes) -> bytes:
    """Gives the block that was shuffled."""
    whole, rest = _rows(block)
    return whole.reshape(_ROW_BYTES, -1).T.tobytes() + rest


def _rows(block: Bytes) -> tuple["np.ndarray[tuple[int], np.dtype[np.uint8]]", bytes]:
    values = np.frombuffer(block, dtype=np.uint8)
    end = values.size - values.size % _ROW_BYTES
    return values[:end], values[end:].tobytes()


class BlockCutter:
    """Cuts a stream of bytes into the blocks that are shuffled one by one; it holds less than one of them."""

    def __init__(self) -> None:
        self._gathered = bytearray()

    def feed(self, data: Bytes) -> Iterator[bytes]:
        """Takes the next bytes and yields the whole blocks that are there."""
        self._gathered += data
        while len(self._gathered) >= BLOCK_BYTES:
            block = bytes(self._gathered[:BLOCK_BYTES])
            del self._gathered[:BLOCK_BYTES]
            yield block

    def close(self) -> bytes:
        """Gives the last block, shorter than the others."""
        return bytes(self._gathered)


def shuffled(pieces: Iterable[Bytes]) -> Iterator[bytes]:
    """Yields a body, which comes in pieces of any size, in shuffled blocks."""
    cutter = BlockCutter()
    for piece in pieces:
        for block in cutter.feed(piece):
            yield shuffle_block(block)
    if last := cutter.close():
        yield shuffle_block(last)
