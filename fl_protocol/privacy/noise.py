"""Noise drawn from a key: element j depends on the key and on j alone, so any split gives the same bits.

Every element owns one block of the keystream of AES-256 in counter mode: element j's block is number j. Two neighbours
share their blocks for one Box-Muller transform. A uniform takes 128 bits, because the tails need them: with 64, the
values beyond 6.6 standard deviations would lie farther apart than a fine grid's steps, and which of them occur would
tell the sum apart from its neighbour. Without a loop that depends on what was drawn, the time tells nothing either.

The keystream is the same everywhere. log, cos and sin are numpy's and may differ in the last bit from one processor
type or version of numpy to another, so a release can be recomputed bit for bit on the machine that made it, not on
every other one.

A key is 32 bytes of `os.urandom`, for one release; this module takes it as an argument and keeps nothing.
"""

import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fl_protocol.dtypes import Float64Array

Int64Array = NDArray[np.int64]

KEY_BYTES: Final = 32
MAX_ABS_GAUSSIAN: Final = 13.33
"""No standard normal drawn here is larger: sqrt(2 * 128 * ln 2), which one in 10^38 would exceed."""
MAX_ABS_LAPLACE: Final = 88.03
"""No Laplace variable of scale 1 drawn here is larger: 127 * ln 2, which one in 10^38 would exceed."""

_MAX_SCALE: Final = 2.0**55
"""So wide a noise at most: the farthest draw stays below 2^62."""
_BLOCK_BYTES: Final = 16
_TILE_ELEMENTS: Final = 1 << 14
"""256 KiB of keystream and 512 KiB of float64: stays in a core's second-level cache, and hides the cost of a call."""
_GROUP_ELEMENTS: Final = 128
"""Vector units take so many elements or a divisor of it at once, and may treat a shorter rest in another way."""
_NO_BYTES: Final = bytes(_BLOCK_BYTES * _TILE_ELEMENTS)
_TO_UNIT: Final = 2.0**-64

_Words = NDArray[np.uint64]
_Transform = Callable[[_Words, Float64Array], None]


def gaussian(key: bytes, *, first: int, count: int) -> Float64Array:
    """Draws the standard normals of the elements first, first + 1, ..., first + count - 1."""
    drawn = np.empty(count)
    for place, tile in _tiles(key, _box_muller, first=first, count=count):
        drawn[place] = tile
    return drawn


def laplace(key: bytes, *, first: int, count: int) -> Float64Array:
    """Draws the Laplace variables of scale 1 of the elements first, first + 1, ..., first + count - 1."""
    drawn = np.empty(count)
    for place, tile in _tiles(key, _inverse_laplace, first=first, count=count):
        drawn[place] = tile
    return drawn


def lattice_gaussian(key: bytes, *, first: int, count: int, stddev: float) -> Int64Array:
    """Draws rint(stddev * G), with `stddev` in steps of the grid."""
    drawn = np.zeros(count, dtype=np.int64)
    add_lattice_gaussian(drawn, key=key, first=first, stddev=stddev)
    return drawn


def lattice_laplace(key: bytes, *, first: int, count: int, scale: float) -> Int64Array:
    """Draws rint(scale * L), with `scale` in steps of the grid."""
    drawn = np.zeros(count, dtype=np.int64)
    add_lattice_laplace(drawn, key=key, first=first, scale=scale)
    return drawn


def add_lattice_gaussian(totals: Int64Array, *, key: bytes, first: int, stddev: float) -> None:
    """Adds rint(stddev * G) to each total in place; totals[0] is the release's element number `first`.

    For an integer S, S + rint(x) = rint(S + x): what is released is a function of the ideal Gaussian mechanism's
    output, and its support does not depend on S (Mironov 2012 for what floats added to floats would tell).
    """
    for place, tile in _tiles(key, _box_muller, first=first, count=totals.size):
        add_rounded(totals[place], tile, scale=stddev)


def add_lattice_laplace(totals: Int64Array, *, key: bytes, first: int, scale: float) -> None:
    """Adds rint(scale * L) to each total in place; totals[0] is the message's element number `first`."""
    for place, tile in _tiles(key, _inverse_laplace, first=first, count=totals.size):
        add_rounded(totals[place], tile, scale=scale)


def add_rounded(totals: Int64Array, noise: Float64Array, *, scale: float) -> None:
    """Adds rint(scale * noise) to each total in place; `noise` has the width 1 or is correlated noise made of such."""
    if not 0 < scale <= _MAX_SCALE:
        raise ValueError(f"the noise's width is {scale:g} steps of the grid; it must be above 0 and at most 2^55")
    scaled = noise * scale
    np.rint(scaled, out=scaled)
    np.add(totals, scaled.astype(np.int64), out=totals)


def _tiles(key: bytes, transform: _Transform, *, first: int, count: int) -> Iterator[tuple[slice, Float64Array]]:
    """Yields where the next elements belong, counted from `first`, and their values, valid until more are asked for.

    Whole groups that start at multiples of the group's size are transformed and what nobody wants is cut off, so that
    an element takes the same instructions whichever elements are asked for with it.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a noise key has {KEY_BYTES} bytes, not {len(key)}")
    if first < 0 or count < 0:
        raise ValueError(f"elements are counted from 0: first {first}, count {count}")
    stop = first + count
    begin, end = first // _GROUP_ELEMENTS * _GROUP_ELEMENTS, -(-stop // _GROUP_ELEMENTS) * _GROUP_ELEMENTS
    keystream = Cipher(algorithms.AES256(key), modes.CTR(begin.to_bytes(_BLOCK_BYTES, "big"))).encryptor()
    # update_into asks for room for one more block, less a byte.
    buffer = bytearray(min(len(_NO_BYTES), (end - begin) * _BLOCK_BYTES) + _BLOCK_BYTES - 1)
    values = np.empty(min(_TILE_ELEMENTS, end - begin))
    for at in range(begin, end, _TILE_ELEMENTS):
        size = min(_TILE_ELEMENTS, end - at)
        keystream.update_into(memoryview(_NO_BYTES)[: size * _BLOCK_BYTES], buffer)
        transform(np.frombuffer(buffer, dtype="<u8", count=2 * size), values[:size])
        wanted = slice(max(first, at), min(stop, at + size))
        yield slice(wanted.start - first, wanted.stop - first), values[wanted.start - at : wanted.stop - at]


def _box_muller(words: _Words, normals: Float64Array) -> None:
    """Turns four words a pair into two standard normals (Box & Muller 1958): radius from 128 bits, angle from 64."""
    of_pair, pairs = words.reshape(-1, 4), normals.reshape(-1, 2)
    radius = _above_zero(of_pair[:, 0], of_pair[:, 2])
    np.log(radius, out=radius)
    np.multiply(radius, -2.0, out=radius)
    np.sqrt(radius, out=radius)
    angle = of_pair[:, 1].astype(np.float64)
    np.multiply(angle, 2 * math.pi * _TO_UNIT, out=angle)
    np.multiply(np.cos(angle), radius, out=pairs[:, 0])
    np.sin(angle, out=angle)
    np.multiply(angle, radius, out=pairs[:, 1])


def _inverse_laplace(words: _Words, variables: Float64Array) -> None:
    """Turns two words an element into a Laplace variable: one bit is its sign, 127 make its exponential magnitude."""
    of_element = words.reshape(-1, 2)
    uniform = _above_zero(of_element[:, 0] >> np.uint64(1), of_element[:, 1])
    np.multiply(uniform, 2.0, out=uniform)
    np.log(uniform, out=variables)
    np.negative(variables, out=variables, where=of_element[:, 0] & np.uint64(1) == 0)


def _above_zero(high: _Words, low: _Words) -> Float64Array:
    """Gives (high + (low + 1) / 2^64) / 2^64, above 0 and at most 1, to float64's relative precision everywhere."""
    uniform = low.astype(np.float64)
    np.add(uniform, 1.0, out=uniform)
    np.multiply(uniform, _TO_UNIT, out=uniform)
    np.add(uniform, high, out=uniform)
    np.multiply(uniform, _TO_UNIT, out=uniform)
    return uniform
