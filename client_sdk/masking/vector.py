"""A client's masked vector: clipped, weighed, quantised, noised and masked window by window, into a file of its own.

The file holds what is sent, and nothing else than that: the server may know it. So it can be sent again after a cut
without the masks, and the update is held once, with a few windows beside it.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from client_sdk.config import IN_MEMORY_BYTES
from client_sdk.masking.update import MaskedUpdate, windows
from fl_protocol.dtypes import Float64Array
from fl_protocol.masking.prg import Mask, apply_masks
from fl_protocol.masking.quantisation import quantise
from fl_protocol.masking.ring import Int64Array, Ring, encode_extras, pack, to_words
from fl_protocol.privacy.noised_update import noised_windows


@dataclass(frozen=True, slots=True)
class MaskedVector:
    """A masked vector in its file; `sha256` is the digest by which the transcript lists it."""

    file: IO[bytes]
    num_bytes: int
    sha256: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256.hex()}"

    def pieces(self, piece_bytes: int, begin: int = 0) -> Iterator[bytes]:
        """Reads the vector from byte `begin` on."""
        self.file.seek(begin)
        while piece := self.file.read(piece_bytes):
            yield piece


def masked_vector(
    update: MaskedUpdate, *, ring: Ring, masks: Sequence[Mask], rounding_key: bytes, folder: Path
) -> MaskedVector:
    """Writes an update's masked vector; `rounding_key` is 32 fresh random bytes for this vector alone.

    Its share of the noise, if it has one, is drawn from the same key.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(folder))  # noqa: SIM115 - it outlives this function
    hasher, num_bytes = hashlib.sha256(), 0
    for piece in _masked(update, ring=ring, masks=masks, rounding_key=rounding_key):
        file.write(piece)
        hasher.update(piece)
        num_bytes += len(piece)
    return MaskedVector(file, num_bytes, hasher.digest())


def _masked(update: MaskedUpdate, *, ring: Ring, masks: Sequence[Mask], rounding_key: bytes) -> Iterator[bytes]:
    first = 0
    for steps in _steps(update, ring=ring, key=rounding_key):
        words = to_words(steps, ring)
        apply_masks(words, masks, first=first)
        yield pack(words, ring.bits)
        first += words.size
    words = to_words(encode_extras(update.extras, ring), ring)
    if words.size:
        apply_masks(words, masks, first=first)
        yield pack(words, ring.bits)


def _steps(update: MaskedUpdate, *, ring: Ring, key: bytes) -> Iterator[Int64Array]:
    if update.noise is not None:
        yield from noised_windows(partial(_clipped, update, ring=ring), update.noise, key=key)
        return
    first = 0
    for window in _clipped(update, ring=ring):
        yield quantise(window, ring=ring, key=key, weight=update.weight, first=first)
        first += window.size


def _clipped(update: MaskedUpdate, *, ring: Ring) -> Iterator[Float64Array]:
    for window in windows(update.tensors):
        np.multiply(window, update.factor, out=window)
        np.clip(window, -ring.max_abs, ring.max_abs, out=window)
        yield window
