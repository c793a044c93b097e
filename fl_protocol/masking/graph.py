"""Who masks with whom, and how many of them must stay: thresholds, the sparse graph, and what a session tolerates.

Up to 128 members everybody masks with everybody. Larger sessions take a ring over a pseudorandom order, each member
with k / 2 neighbours on both sides (Harary). k and the threshold t keep three failures improbable: a graph that is cut,
too many corrupt neighbours, too few neighbours that stay (Bell et al. 2020; privacy.md 3.4). All numbers are exact.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from typing import Final

from fl_protocol.masking.errors import GraphError

MAX_COMPLETE: Final = 128
MIN_MEMBERS: Final = 3
CORRUPT_SHARE: Final = 0.1
DROPOUT_SHARE: Final = 0.1

_SECURITY_BITS: Final = 40
_CORRECTNESS_BITS: Final = 20
_ORDER_TAG: Final = b"flsa/v1/graph\0"

Neighbours = tuple[tuple[int, ...], ...]
"""For each member its neighbours, rising."""


class Threat(StrEnum):
    """What a server may do once keys and graph are fixed: only look, or deviate as it likes."""

    CURIOUS = "curious"
    MALICIOUS = "malicious"


@dataclass(frozen=True, slots=True)
class Graph:
    """A session's size n, each member's number of neighbours k, the threshold t of shares, and the quorum T_c.

    `threshold` shares join to a secret; `quorum` members must sign one list of survivors before any share is given.
    """

    num_members: int
    degree: int
    threshold: int
    quorum: int

    @property
    def is_complete(self) -> bool:
        return self.degree == self.num_members - 1

    @property
    def responders(self) -> int:
        """How many members must answer to the end: one more than t, as a survivor holds no share of its own."""
        return max(self.threshold + 1, self.quorum)

    @property
    def tolerated_dropouts(self) -> int:
        """How many members may vanish; in a sparse graph for all but one session in a million."""
        allowed = self.num_members - self.responders
        return allowed if self.is_complete else min(allowed, _floor(DROPOUT_SHARE, self.num_members))

    @property
    def tolerated_colluders(self) -> int:
        """How many members may collude with a server that deviates; in a sparse graph for all but 2^-40."""
        if self.is_complete:
            return min(self.threshold - 1, 2 * self.threshold - self.degree - 1)
        return _floor(CORRUPT_SHARE, self.num_members)


@lru_cache(maxsize=256)
def graph_of(num_members: int) -> Graph:
    """Gives the graph and the thresholds for so many members, the only ones that a client accepts.

    Raises GraphError below 3 members, of whom the sum less one's own would be another's.
    """
    if num_members < MIN_MEMBERS:
        raise GraphError(
            "num_members", value=num_members, bound=MIN_MEMBERS, what=f"{num_members} members; at least {MIN_MEMBERS}"
        )
    quorum = 2 * num_members // 3 + 1
    degree, threshold = num_members - 1, 0
    if num_members > MAX_COMPLETE:
        degree, threshold = sparse_parameters(num_members)
    if degree == num_members - 1:
        threshold = 2 * degree // 3 + 1
    return Graph(num_members, degree, threshold, quorum)


@lru_cache(maxsize=256)
def sparse_parameters(
    num_members: int,
    *,
    corrupt: float = CORRUPT_SHARE,
    dropout: float = DROPOUT_SHARE,
    threat: Threat = Threat.MALICIOUS,
) -> tuple[int, int]:
    """Gives the least even k, and its t, that suffice if these shares of the members are corrupt and drop out.

    Gives k = n - 1 if no sparse graph suffices; t is then the least that is safe, and no dropouts are promised.
    """
    num_corrupt = _floor(corrupt, num_members)
    num_dropouts = _floor(dropout, num_members)
    for degree in range(2, num_members - 1, 2):
        if not _is_connected(num_members, degree, num_bad=num_corrupt + num_dropouts):
            continue
        adversaries = _most_corrupt(num_members, degree, num_corrupt=num_corrupt)
        threshold = adversaries + 1 if threat is Threat.CURIOUS else (adversaries + degree) // 2 + 1
        threshold = max(threshold, 2)
        if threshold <= _fewest_alive(num_members, degree, num_alive=num_members - num_dropouts):
            return degree, threshold
    degree = num_members - 1
    return degree, degree // 2 + 1 if threat is Threat.CURIOUS else 2 * degree // 3 + 1


@lru_cache(maxsize=64)
def neighbours(session_id: bytes, num_members: int, degree: int) -> Neighbours:
    """Gives each member's neighbours, rising: all others, or k / 2 on each side in the order of the session's hashes.

    The relation is symmetric. Raises GraphError for a degree that is neither even nor n - 1.
    """
    if degree == num_members - 1:
        return tuple((*range(member), *range(member + 1, num_members)) for member in range(num_members))
    if degree % 2 or not 0 < degree < num_members:
        raise GraphError(
            "degree", value=degree, bound=num_members - 1, what=f"{degree} of {num_members - 1} others; even, or all"
        )
    order = sorted(range(num_members), key=lambda member: _place(session_id, member))
    found: list[tuple[int, ...]] = [()] * num_members
    reach = (*range(-degree // 2, 0), *range(1, degree // 2 + 1))
    for at, member in enumerate(order):
        found[member] = tuple(sorted(order[(at + offset) % num_members] for offset in reach))
    return tuple(found)


def isolated(members: Collection[int], alive: Collection[int], *, graph: Graph, neighbours: Neighbours) -> list[int]:
    """Names those of `members` with fewer than t neighbours among `alive`: their secrets could not be recovered."""
    present = frozenset(alive)
    return [
        member
        for member in sorted(members)
        if sum(neighbour in present for neighbour in neighbours[member]) < graph.threshold
    ]


def can_proceed(
    members: Collection[int], alive: Collection[int], *, graph: Graph, neighbours: Neighbours, min_members: int
) -> bool:
    """Tells whether a session can go on: enough of all are `alive`, and of the neighbours of each of `members`."""
    if len(alive) < max(min_members, graph.quorum):
        return False
    return not isolated(members, alive, graph=graph, neighbours=neighbours)


def _floor(share: float, num_members: int) -> int:
    """Gives floor(share * n) of the decimal number that was meant: 0.29 of 100 is 29."""
    return math.floor(Fraction(str(share)) * num_members)


def _place(session_id: bytes, member: int) -> bytes:
    return sha256(_ORDER_TAG + session_id + member.to_bytes(4, "big")).digest()


def _is_connected(num_members: int, degree: int, *, num_bad: int) -> bool:
    """Tells whether the graph less its bad members is cut with a probability below 2^-41."""
    if degree > num_bad:
        return True
    cuts = num_members * (num_members - degree - 1) * math.perm(num_bad, degree)
    return cuts << _SECURITY_BITS < math.perm(num_members, degree)


def _most_corrupt(num_members: int, degree: int, *, num_corrupt: int) -> int:
    """Gives a: more corrupt neighbours than so many has any member with a probability of at most 2^-41.

    The other half of 2^-40 is the cut graph's.
    """
    counts = _hypergeometric(num_members, num_corrupt, degree)
    total = math.comb(num_members, degree)
    tail, most = 0, degree
    while (tail + counts[most]) * num_members << _SECURITY_BITS + 1 <= total:
        tail += counts[most]
        most -= 1
    return most


def _fewest_alive(num_members: int, degree: int, *, num_alive: int) -> int:
    """Gives s: fewer neighbours than so many stay for any member with a probability of at most 2^-20."""
    counts = _hypergeometric(num_members, num_alive, degree)
    total = math.comb(num_members, degree)
    tail, fewest = 0, 0
    while (tail + counts[fewest]) * num_members << _CORRECTNESS_BITS <= total:
        tail += counts[fewest]
        fewest += 1
    return fewest


def _hypergeometric(population: int, special: int, drawn: int) -> Sequence[int]:
    """Counts for x = 0...drawn the draws with x special ones, exactly."""
    ordinary = population - special
    return [math.comb(special, hit) * math.comb(ordinary, drawn - hit) for hit in range(drawn + 1)]
