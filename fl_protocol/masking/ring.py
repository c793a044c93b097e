"""The ring of integers modulo 2^b in which masked vectors are added: its parameters, its bytes, and what a sum may be.

b and the grid's step are chosen so that the sum of everything that honest clients may send fits in b bits with its sign
and cannot wrap around. A vector holds the model's coordinates and then the extras: the weight, metrics.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fl_protocol.masking.errors import RingError

Words = NDArray[np.unsignedinteger[Any]]
"""uint32 for rings of up to 32 bits, uint64 above: sums and masks wrap there, and packing alone reduces modulo 2^b."""
Int64Array = NDArray[np.int64]

WIDTHS: Final = (16, 24, 32, 40, 48, 64)
MIN_LEVELS: Final = 2**15
"""So many steps at least lie between 0 and the largest coordinate, unless the caller asks for another number."""
WEIGHT: Final = "weight"
"""The name of the extra that adds up to the total weight."""

_NORM_SLACK: Final = 1 + 1e-3


@dataclass(frozen=True, slots=True)
class Extra:
    """A number that travels behind the model's coordinates, as rint(value * scale), at most `bound` in magnitude."""

    name: str
    bound: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Ring:
    """A session's ring: Z modulo 2^`bits`, and the grid of width `step` on which updates lie in it.

    `levels` (Q) is the largest coordinate of one update in steps, before its weight; `max_abs` is the same in the
    update's own unit. `headroom` is what noise may add to a sum, in steps. `max_members` is n_max, `max_weight` W_max.
    """

    bits: int
    step: float
    levels: int
    max_abs: float
    max_members: int
    max_weight: int = 1
    headroom: int = 0
    extras: tuple[Extra, ...] = ()

    @property
    def dtype(self) -> "np.dtype[np.unsignedinteger[Any]]":
        """The type of the words that hold elements in memory."""
        return np.dtype(np.uint32) if self.bits <= 32 else np.dtype(np.uint64)

    @property
    def element_bytes(self) -> int:
        """The bytes of one element on the wire."""
        return self.bits // 8

    def num_bytes(self, num_coordinates: int) -> int:
        """Gives the bytes of a packed vector of a model with so many coordinates, extras included."""
        return (num_coordinates + len(self.extras)) * self.element_bytes


def choose_ring(
    *,
    max_members: int,
    max_abs: float,
    max_weight: int = 1,
    extras: Iterable[Extra] = (),
    headroom: int = 0,
    min_levels: int = MIN_LEVELS,
) -> Ring:
    """Chooses the narrowest ring, and the finest grid in it, so that no sum can wrap (privacy.md 3.2).

    `max_abs` (c_inf) bounds each coordinate of an update, `max_members` (n_max) how many are added, `max_weight`
    (W_max) the factor of each. Raises RingError naming what is too large if not even 64 bits hold such sums.
    """
    extras = tuple(extras)
    _check_choice(max_members=max_members, max_abs=max_abs, max_weight=max_weight, headroom=headroom)
    for bits in WIDTHS:
        largest = 2 ** (bits - 1) - 1
        # One less, as rounding up at random may add 1.
        levels = (largest - headroom) // (max_members * max_weight) - 1
        if levels >= min_levels and all(max_members * extra.bound <= largest for extra in extras):
            return Ring(
                bits=bits,
                step=max_abs / levels,
                levels=levels,
                max_abs=max_abs,
                max_members=max_members,
                max_weight=max_weight,
                headroom=headroom,
                extras=extras,
            )
    raise _too_large(extras, max_members=max_members, max_weight=max_weight, headroom=headroom, min_levels=min_levels)


def ring_of_step(*, step: float, max_members: int, max_abs: float, headroom: int, extras: Iterable[Extra] = ()) -> Ring:
    """Chooses the narrowest ring for unweighted updates on a grid that is given, as noise of the clients' own needs it.

    Raises RingError if 64 bits do not hold `max_members` updates and `headroom` steps of noise.
    """
    extras = tuple(extras)
    _check_choice(max_members=max_members, max_abs=max_abs, max_weight=1, headroom=headroom)
    if not 0 < step <= max_abs:
        raise RingError("step", value=step, bound=max_abs, what=f"{step:g} is not above 0 and at most {max_abs:g}")
    levels = math.ceil(max_abs / step)
    for bits in WIDTHS:
        largest = 2 ** (bits - 1) - 1
        if max_members * (levels + 1) + headroom <= largest and all(
            max_members * extra.bound <= largest for extra in extras
        ):
            return Ring(bits, step, levels, max_abs, max_members, headroom=headroom, extras=extras)
    raise _too_large(extras, max_members=max_members, max_weight=1, headroom=headroom, min_levels=levels)


def to_words(values: Int64Array, ring: Ring) -> Words:
    """Gives integers as elements of the ring: two's complement in the words' width."""
    return values.astype(ring.dtype)


def encode_extras(values: Mapping[str, float], ring: Ring) -> Int64Array:
    """Gives the ring's extras in their order as integers, rint(value * scale).

    Raises RingError naming an extra that is missing, undeclared, not finite or beyond its bound.
    """
    declared = [extra.name for extra in ring.extras]
    if unknown := sorted(set(values) ^ set(declared)):
        raise RingError(
            f"extras.{unknown[0]}",
            value=sorted(values),
            bound=declared,
            what=f"the extras are {', '.join(declared) or 'none'}; given are {', '.join(sorted(values)) or 'none'}",
        )
    return np.array([_encode_extra(extra, values[extra.name]) for extra in ring.extras], dtype=np.int64)


def pack(words: Words, bits: int) -> bytes:
    """Gives the low bits of each word as bits / 8 bytes, little-endian; the words lie one behind the other."""
    size, width = words.dtype.itemsize, bits // 8
    given = words.astype(words.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(-1, size)
    packed = np.empty((words.size, width), dtype=np.uint8)
    # Column by column numpy takes a third of the time of one copy of short rows.
    for column in range(width):
        packed[:, column] = given[:, column]
    return packed.tobytes()


def unpack(data: bytes | bytearray | memoryview, bits: int) -> Words:
    """Gives packed elements as words, not extended by their sign; the array is the caller's to change.

    Raises RingError if the bytes are not a whole number of elements.
    """
    width, size = bits // 8, 4 if bits <= 32 else 8
    if len(data) % width:
        raise RingError("input", value=len(data), bound=width, what=f"{len(data)} bytes are no multiple of {width}")
    words: Words = np.zeros(len(data) // width, dtype=f"<u{size}")
    # Whole words are read at steps of an element and what they have of the next one cut off, as far as there is one.
    whole = max(0, (len(data) - size) // width + 1)
    words[:whole] = np.ndarray((whole,), dtype=words.dtype, buffer=data, strides=(width,))
    np.bitwise_and(words, words.dtype.type(2**bits - 1), out=words)
    rest = np.frombuffer(data, dtype=np.uint8)[whole * width :].reshape(-1, width)
    words[whole:].view(np.uint8).reshape(-1, size)[:, :width] = rest
    return words.astype(words.dtype.newbyteorder("="), copy=False)


def signed(words: Words, bits: int) -> Int64Array:
    """Gives each word's low bits as the signed integer that they stand for."""
    unused = 8 * words.dtype.itemsize - bits
    shifted = words << words.dtype.type(unused)
    return (shifted.view(f"i{words.dtype.itemsize}") >> unused).astype(np.int64)


@dataclass(frozen=True, slots=True)
class SumMeasure:
    """What the range checks need of the model's coordinates of a sum; those of two windows join with `+`."""

    max_abs: int = 0
    squares: float = 0.0

    def __add__(self, other: "SumMeasure") -> "SumMeasure":
        return SumMeasure(max(self.max_abs, other.max_abs), self.squares + other.squares)


def measure_sum(totals: Int64Array) -> SumMeasure:
    """Measures a window of a sum's model coordinates."""
    if totals.size == 0:
        return SumMeasure()
    # abs of the smallest int64 would wrap.
    largest = max(int(totals.max()), -int(totals.min()))
    values = totals.astype(np.float64)
    return SumMeasure(max(largest, 0), float(np.dot(values, values)))


def check_sum(
    measure: SumMeasure,
    extras: Int64Array,
    *,
    ring: Ring,
    num_members: int,
    num_coordinates: int,
    clipping_norm: float | None = None,
) -> None:
    """Raises RingError if no honest clients could have sent a sum (privacy.md 3.2): poison or a defect.

    `extras` are the sum's extras in the ring's order, `num_members` is |U3|. `clipping_norm` is the bound of each
    update's L2 norm, None where there is none or where clients added noise.
    """
    _at_most("sum", measure.max_abs, num_members * (ring.levels * ring.max_weight + 1) + ring.headroom)
    for extra, total in zip(ring.extras, extras.tolist(), strict=True):
        _at_most(f"extras.{extra.name}", abs(total), num_members * extra.bound)
    total_weight = _total_weight(extras, ring=ring, num_members=num_members)
    if clipping_norm is not None:
        reach = total_weight * clipping_norm * _NORM_SLACK + ring.step * math.sqrt(num_coordinates) * num_members
        _at_most("sum.norm", math.sqrt(measure.squares) * ring.step, reach)


def _total_weight(extras: Int64Array, *, ring: Ring, num_members: int) -> int:
    """Gives S_W: the sum's weight, or where updates have none the number of members."""
    names = [extra.name for extra in ring.extras]
    if WEIGHT not in names:
        return num_members
    total = int(extras[names.index(WEIGHT)])
    if not num_members <= total <= num_members * ring.max_weight:
        raise RingError(
            "extras.weight",
            value=total,
            bound=num_members * ring.max_weight,
            what=f"{num_members} members cannot weigh {total}; each weighs 1 to {ring.max_weight}",
        )
    return total


def _at_most(field: str, value: float, bound: float) -> None:
    if not value <= bound:
        raise RingError(field, value=value, bound=bound, what=f"{value:.6g} is more than the {bound:.6g} it can be")


def _encode_extra(extra: Extra, value: float) -> int:
    scaled = value * extra.scale
    if not math.isfinite(scaled) or abs(round(scaled)) > extra.bound:
        raise RingError(
            f"extras.{extra.name}",
            value=value,
            bound=extra.bound / extra.scale,
            what=f"{value:g} is more than the declared {extra.bound / extra.scale:g} in magnitude",
        )
    return round(scaled)


def _check_choice(*, max_members: int, max_abs: float, max_weight: int, headroom: int) -> None:
    if max_members < 1:
        raise RingError("max_members", value=max_members, bound=1, what=f"{max_members} members; at least 1")
    if max_weight < 1:
        raise RingError("max_weight", value=max_weight, bound=1, what=f"a largest weight of {max_weight}; at least 1")
    if headroom < 0:
        raise RingError("headroom", value=headroom, bound=0, what=f"a head-room of {headroom} steps; at least 0")
    if not 0 < max_abs < math.inf:
        raise RingError("max_abs", value=max_abs, bound=0, what=f"coordinates of at most {max_abs:g}; above 0, finite")


def _too_large(
    extras: tuple[Extra, ...], *, max_members: int, max_weight: int, headroom: int, min_levels: int
) -> RingError:
    largest = 2 ** (WIDTHS[-1] - 1) - 1
    for extra in extras:
        if max_members * extra.bound > largest:
            bound = largest // max_members
            return RingError(
                f"extras.{extra.name}",
                value=extra.bound,
                bound=bound,
                what=f"a bound of {extra.bound} for each of {max_members} members; at most {bound} fits into 64 bits",
            )
    reach = max_members * max_weight * (min_levels + 1) + headroom
    return RingError(
        "max_members",
        value=max_members,
        bound=largest,
        what=f"{max_members} members of weight up to {max_weight} with {min_levels} levels and {headroom} steps of "
        f"head-room add up to {reach}; a ring of 64 bits holds {largest}",
    )
