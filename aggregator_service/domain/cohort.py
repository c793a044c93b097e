"""Who takes part in a round: places for whoever asks, draws without replacement, and secret coins."""

import hashlib
import hmac
from collections.abc import Iterable
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

from aggregator_service.domain.records import RoundRecord
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunSpec
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.specs.strategies import MeanStrategy

KEY_BYTES: Final = 32
_COIN_BYTES: Final = 8
_GATHERING_SHARE: Final = 4
_LONGEST_GATHERING: Final = timedelta(seconds=60)


def counts_once(spec: RunSpec) -> bool:
    """Tells whether a client counts at most once in a round or buffer.

    In a buffered mean it may count again, or fewer clients than a buffer holds could never fill it; a strategy that
    stands a number of bad clients must not be outvoted by one.
    """
    return not isinstance(spec.round, BufferedRoundSpec) or not isinstance(spec.strategy, MeanStrategy)


def has_room(round_: RoundRecord, *, num_out: int, latest_version: int, max_staleness: int) -> bool:
    """Tells whether a buffered run has work for one more client.

    That takes a place for one more task, and a newest model which is not already too old for the buffer: sealed buffers
    may wait for their aggregate, and what is made from a model before them is stale by as many versions.
    """
    if round_.state is not RoundState.COLLECTING or num_out >= round_.cohort_size:
        return False
    return round_.base_version - latest_version <= max_staleness


def has_place(round_: RoundRecord) -> bool:
    """Tells whether selection `open` gives a place to the next client that asks: until the cohort is full."""
    return round_.state is RoundState.COLLECTING and round_.num_tasks < round_.cohort_size


def seeded_key(seed: int, *, number: int, attempt: int) -> bytes:
    """Gives the key of an attempt's draw in a run with a seed; anyone who knows the seed can repeat the draw."""
    return hashlib.sha256(f"fedquorum selection {seed} {number} {attempt}".encode()).digest()


def draw(key: bytes, client_ids: Iterable[str], count: int) -> list[str]:
    """Draws up to `count` clients without replacement: those whose keyed hashes are the smallest.

    Every subset of that size is equally likely, whatever the order of the candidates; a later draw with the same key
    goes on where the first one ended, for the clients that are left keep their order.
    """
    return sorted(client_ids, key=lambda client_id: _hash(key, client_id))[:count]


def coin(key: bytes, client_id: str, probability: float) -> bool:
    """Tosses a client's own coin of a round: heads with a probability (exact to 2^-64), the same at every toss.

    The hash is HMAC-SHA-256 under a key that only the server knows, so that nobody can tell a coin from outside, and
    the coins of different clients are independent (Poisson sampling).
    """
    return int.from_bytes(_hash(key, client_id)[:_COIN_BYTES]) < Fraction(probability) * 256**_COIN_BYTES


def gathering_ends(round_: RoundRecord) -> datetime:
    """Gives the instant from which a draw no longer waits for a full cohort: a quarter of the time, at most 60 s."""
    quarter = (round_.deadline_at - round_.opened_at) / _GATHERING_SHARE
    return round_.opened_at + min(quarter, _LONGEST_GATHERING)


def may_draw(round_: RoundRecord, *, num_candidates: int, now: datetime) -> bool:
    """Tells whether a round's cohort can be drawn: from enough for every place, or in the end for `min_updates`."""
    if num_candidates >= round_.cohort_size:
        return True
    return num_candidates >= round_.min_updates and now >= gathering_ends(round_)


def _hash(key: bytes, client_id: str) -> bytes:
    return hmac.digest(key, client_id.encode(), "sha256")
