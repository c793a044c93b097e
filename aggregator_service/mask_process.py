"""Adds up masks for a server that asks over a pipe (`python -m aggregator_service.mask_process`), and ends with it.

AES holds Python's lock, so that only another process makes use of another core. Keys come through the pipe alone; what
goes back is a sum of masks, which is worth nothing without the sum of vectors that they are in.
"""

import contextlib
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Final

import numpy as np

from fl_protocol.masking.keys import KEY_BYTES
from fl_protocol.masking.prg import Mask, apply_masks
from fl_protocol.masking.ring import Words

_BEGIN: Final = struct.Struct("<BI")
_ASK: Final = struct.Struct("<QI")


def begin(masks: Sequence[Mask], *, word_bytes: int) -> bytes:
    """Writes what a process is told first: the masks, and the width of the words that they are added in."""
    told = b"".join(bytes(mask.key) + bytes([mask.is_subtracted]) for mask in masks)
    return _BEGIN.pack(word_bytes, len(masks)) + told


def ask(first: int, count: int) -> bytes:
    """Writes the request for so many words of the masks' sum from word `first` on; they come as they lie in memory."""
    return _ASK.pack(first, count)


def main() -> None:
    """Answers until the server closes the pipe, or is gone."""
    # Whoever asked is not there any more: nobody is to be told.
    with contextlib.suppress(BrokenPipeError):
        for words in _sums(sys.stdin.buffer):
            sys.stdout.buffer.write(words.tobytes())
            sys.stdout.buffer.flush()


def _sums(pipe: IO[bytes]) -> Iterator[Words]:
    word_bytes, num_masks = _BEGIN.unpack(pipe.read(_BEGIN.size))
    masks = [Mask(pipe.read(KEY_BYTES), is_subtracted=pipe.read(1) == b"\x01") for _ in range(num_masks)]
    while len(asked := pipe.read(_ASK.size)) == _ASK.size:
        first, count = _ASK.unpack(asked)
        words: Words = np.zeros(count, dtype=np.dtype(f"u{word_bytes}"))
        apply_masks(words, masks, first=first)
        yield words


if __name__ == "__main__":
    main()
