"""Which elements a random mask sends: one drawn from each of `count` equal parts of a tensor, by the update's seed.

Part j of a tensor of n elements is [j * n // count, (j + 1) * n // count), and its element is the first one plus
word_j * length // 2^32. Word j is the little-endian integer at byte 4 j of the keystream of AES-256 in counter mode
with the key SHA-256(seed, then the tensor's name in UTF-8) and a counter block that starts at zero and counts as one
128-bit big-endian number. So indices increase strictly, any window of them costs its own length only, and each element
is as likely to be sent as any other of its part.
"""

import hashlib
import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

SEED_KEY: Final = "mask_seed"
SEED_BYTES: Final = 32

_SEED: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def parse_seed(text: str) -> bytes | None:
    """Reads a seed as metadata has it, 64 lower-case hexadecimal digits; None for anything else."""
    return bytes.fromhex(text) if _SEED.fullmatch(text) else None


def parts_of_window(num_elements: int, count: int, *, begin: int, end: int) -> tuple[int, int]:
    """Gives the parts [first, last) that hold the elements [begin, end) of a tensor."""
    return ((begin + 1) * count - 1) // num_elements, (end * count - 1) // num_elements + 1


def mask_indices(seed: bytes, name: str, *, num_elements: int, count: int, first: int, last: int) -> NDArray[np.int64]:
    """Gives the elements that the parts [first, last) of a tensor send, counted from the tensor's first element."""
    # The cipher is in the extra [privacy], which only those need who draw a mask.
    from fl_protocol.masking.prg import keystream  # noqa: PLC0415

    words = np.empty(last - first, dtype="<u4")
    key = hashlib.sha256(seed + name.encode()).digest()
    keystream(key, stream=0, first=first, words=words)
    bounds = np.arange(first, last + 1, dtype=np.uint64) * np.uint64(num_elements) // np.uint64(max(count, 1))
    lengths = bounds[1:] - bounds[:-1]
    drawn = bounds[:-1] + (words.astype(np.uint64) * lengths >> np.uint64(32))
    return drawn.astype(np.int64)
