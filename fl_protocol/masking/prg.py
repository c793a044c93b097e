"""Masks: the keystream of AES-256 in counter mode, read as little-endian words, from any word on.

The initial counter block is the stream's number and a block counter, 64 bits big-endian each. Word j is the integer at
byte w * j of the keystream, w the width of the ring's words (4 or 8 bytes), so that a window of a mask costs no more
than its own length. A key is used for one vector of one session, which is why every counter may start at zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fl_protocol.masking.keys import KEY_BYTES, Secret
from fl_protocol.masking.ring import Words

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

MASK_STREAM: Final = 0
ROUNDING_STREAM: Final = 2

_BLOCK_BYTES: Final = 16
_CHUNK_BYTES: Final = 1 << 17
"""128 KiB of zeros, of keystream and of vector stay in a core's second-level cache and hide the cost of a call."""
_NO_BYTES: Final = bytes(_CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask: its key of 32 bytes, and whether it is subtracted from the vector instead of added to it."""

    key: Secret = field(repr=False)
    is_subtracted: bool = False


def keystream(key: Secret, *, stream: int, first: int, words: Words) -> None:
    """Overwrites `words` with the words first, first + 1, ... of a key's stream, in the width of the array's type."""
    words.fill(0)
    _apply(words, [_seek(key, stream=stream, at=first * words.itemsize)], [False])


def apply_masks(vector: Words, masks: Sequence[Mask], *, first: int = 0) -> None:
    """Adds or subtracts masks in place, modulo 2^32 or 2^64 by the array's type; vector[0] is element `first`.

    The result does not depend on the masks' order nor on how a vector is cut into windows. Chunks of the vector are the
    outer loop and the keys the inner one, so that a chunk is read and written while it is in the cache.
    """
    contexts = [_seek(mask.key, stream=MASK_STREAM, at=first * vector.itemsize) for mask in masks]
    _apply(vector, contexts, [mask.is_subtracted for mask in masks])


def remove_masks(vector: Words, masks: Sequence[Mask], *, first: int = 0) -> None:
    """Takes off what `apply_masks` with the same arguments put on."""
    apply_masks(vector, [Mask(mask.key, is_subtracted=not mask.is_subtracted) for mask in masks], first=first)


def _seek(key: Secret, *, stream: int, at: int) -> "CipherContext":
    """Gives a cipher whose next byte of keystream is number `at`."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a mask key has {KEY_BYTES} bytes, not {len(key)}")
    if at < 0:
        raise ValueError(f"elements are counted from 0, not from {at}")
    block, skipped = divmod(at, _BLOCK_BYTES)
    counter = stream.to_bytes(8, "big") + block.to_bytes(8, "big")
    context = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
    context.update(_NO_BYTES[:skipped])
    return context


def _apply(vector: Words, contexts: "Sequence[CipherContext]", are_subtracted: Sequence[bool]) -> None:
    # update_into asks for room for one more block, less a byte.
    buffer = bytearray(min(_CHUNK_BYTES, vector.nbytes) + _BLOCK_BYTES - 1)
    operations = [np.subtract if is_subtracted else np.add for is_subtracted in are_subtracted]
    length = _CHUNK_BYTES // vector.itemsize
    little_endian = vector.dtype.newbyteorder("<")
    for begin in range(0, vector.size, length):
        chunk = vector[begin : begin + length]
        zeros = memoryview(_NO_BYTES)[: chunk.nbytes]
        words = np.frombuffer(buffer, dtype=little_endian, count=chunk.size)
        for context, operation in zip(contexts, operations, strict=True):
            context.update_into(zeros, buffer)
            operation(chunk, words, out=chunk)
