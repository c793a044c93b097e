"""Masks: any window of a vector gets the bits of the whole, masks cancel, and every key is its own."""

import itertools
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.masking import prg
from fl_protocol.masking.prg import Mask

KEY = bytes(range(32))
CHUNK_WORDS = (1 << 17) // 4


def by_blocks(key, *, stream, first, count, size):
    """Gives words by encrypting each counter block alone, without counter mode."""
    ecb = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    begin, end = first * size // 16, -(-(first + count) * size // 16)
    blocks = b"".join(ecb.update(stream.to_bytes(8, "big") + at.to_bytes(8, "big")) for at in range(begin, end))
    return np.frombuffer(blocks[first * size - 16 * begin :], dtype=f"<u{size}", count=count)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("stream", [prg.MASK_STREAM, prg.ROUNDING_STREAM])
@pytest.mark.parametrize("first", [0, 1, 2, 3, 5, CHUNK_WORDS - 1, 2**40 + 3])
def test_a_word_is_a_function_of_key_stream_and_place(size, stream, first):
    words = np.empty(50, dtype=f"u{size}")
    prg.keystream(KEY, stream=stream, first=first, words=words)
    np.testing.assert_array_equal(words, by_blocks(KEY, stream=stream, first=first, count=50, size=size))


@pytest.mark.parametrize("size", [4, 8])
@settings(max_examples=15, deadline=None)
@given(first=st.integers(0, 2**33), cuts=st.lists(st.integers(0, 3 * CHUNK_WORDS), max_size=6), data=st.data())
def test_any_windows_give_the_bits_of_the_whole(size, first, cuts, data):
    count = 3 * CHUNK_WORDS
    keys = data.draw(st.lists(st.binary(min_size=32, max_size=32), max_size=3))
    masks = [Mask(key, is_subtracted=bool(key[0] & 1)) for key in keys]
    whole = np.arange(count, dtype=f"u{size}")
    prg.apply_masks(whole, masks, first=first)
    parts = np.arange(count, dtype=f"u{size}")
    edges = [0, *sorted(cuts), count]
    for begin, end in itertools.pairwise(edges):
        prg.apply_masks(parts[begin:end], masks[::-1], first=first + begin)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("size", [4, 8])
def test_masks_are_added_subtracted_and_removed_modulo_the_word(size):
    before = np.full(1000, 2 ** (8 * size) - 1, dtype=f"u{size}")
    drawn = by_blocks(KEY, stream=0, first=7, count=1000, size=size)
    for is_subtracted in (False, True):
        vector = before.copy()
        prg.apply_masks(vector, [Mask(KEY, is_subtracted=is_subtracted)], first=7)
        np.testing.assert_array_equal(vector, before - drawn if is_subtracted else before + drawn)
        prg.remove_masks(vector, [Mask(KEY, is_subtracted=is_subtracted)], first=7)
        np.testing.assert_array_equal(vector, before)


def test_a_strided_window_and_an_empty_one_are_masked_in_place():
    rows = np.zeros((100, 2), dtype=np.uint32)
    prg.apply_masks(rows[:, 1], [Mask(KEY)])
    np.testing.assert_array_equal(rows[:, 1], by_blocks(KEY, stream=0, first=0, count=100, size=4))
    assert not rows[:, 0].any()
    prg.apply_masks(rows[:0, 0], [Mask(KEY)])


def test_what_is_no_key_and_no_place_is_refused_and_no_key_is_shown():
    vector = np.zeros(4, dtype=np.uint32)
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        prg.apply_masks(vector, [Mask(bytes(31))])
    with pytest.raises(ValueError, match="32 bytes, not 0"):
        prg.apply_masks(vector, [Mask(bytearray())])
    with pytest.raises(ValueError, match="from 0, not from -4"):
        prg.keystream(KEY, stream=0, first=-1, words=vector)
    key = os.urandom(32)
    assert key.hex() not in repr(Mask(key))
    assert repr(key) not in repr(Mask(key))
