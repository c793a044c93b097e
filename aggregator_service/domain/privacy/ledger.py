"""The privacy ledger of a run: a chain of entries, each of which holds the hash of the one before.

A round that is opened reserves what its release would bring the budget to. The release is charged in the transaction
that publishes the model; a round of which nothing was released voids its reservation. An entry is never changed: a
later one for the same attempt at a round takes its place.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

_TAG: Final = b"fedquorum/ledger/v1\x00"


class LedgerState(StrEnum):
    """What became of a charge: kept aside, spent for good, or given back because nothing was released."""

    RESERVED = "reserved"
    SPENT = "spent"
    VOID = "void"


class LedgerError(Exception):
    """A ledger is not what was written: the message names the run and the entry."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What a release costs: what the client that has taken part most often has spent after it.

    `epsilon_renyi` is the cross-check by Renyi differential privacy, None where that has no account of the mechanism.
    Where the clients share the noise, `smallest_sums` counts the releases so far by how many clients the smallest of
    the sums had that one released: pairs of both, rising.
    """

    mechanism: str
    noise_multiplier: float
    num_releases: int
    num_participations: int
    epsilon: float
    epsilon_renyi: float | None
    delta: float
    accountant: str
    smallest_sums: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class ReleasedNoise:
    """The noise that the server added to a round's sum, or that clients did, on the integer grid that is `step` apart.

    `sensitivity` and `stddev` count steps: what one update can change at most, and the noise's standard deviation: of
    the clients' that of those which are assumed not to collude, in the round's smallest sum.
    With an adaptive clip `next_clipping_norm` is that of the next round; it follows from the noised share of updates
    that were not clipped.
    """

    clipping_norm: float
    step: float
    sensitivity: int
    stddev: float
    num_elements: int
    next_clipping_norm: float | None = None


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One link of a run's chain; `model_digest` is set when a model was released."""

    run_id: str
    sequence: int
    round_id: str
    round: int
    attempt: int
    state: LedgerState
    charge: Charge
    num_updates: int
    noise: ReleasedNoise | None
    model_digest: str | None
    created_at: datetime
    previous_hash: str

    @property
    def text(self) -> str:
        """The canonical JSON text that is hashed and stored."""
        fields = asdict(self) | {"state": self.state.value, "created_at": self.created_at.isoformat()}
        if self.charge.smallest_sums is None:
            # A key that other kinds never had stays away from their texts, and so from their hashes.
            del fields["charge"]["smallest_sums"]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def hash(self) -> str:
        """SHA-256 over a tag and the text, which holds the hash before it."""
        return _hash(self.text)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry as the database holds it: its text with the hash, and what is looked up by."""

    run_id: str
    sequence: int
    round_id: str
    state: str
    text: str
    hash: str


@dataclass(frozen=True, slots=True)
class Publication:
    """What a round whose model was published has elsewhere in the database: what it is said to cost, and the model."""

    epsilon: float
    model_digest: str


def genesis(run_id: str, spec: Mapping[str, Any]) -> str:
    """Gives the hash before a run's first entry: it binds the ledger to the run and to its whole spec."""
    return _hash(json.dumps({"run_id": run_id, "spec": spec}, sort_keys=True, separators=(",", ":")))


def parse(stored: StoredEntry) -> LedgerEntry:
    """Reads an entry; raises LedgerError if it is not what was written."""
    try:
        entry = _read(stored.text)
    except (ValueError, KeyError, TypeError):
        raise _changed(stored) from None
    looked_up = (entry.run_id, entry.sequence, entry.round_id, entry.state, _hash(stored.text))
    if looked_up != (stored.run_id, stored.sequence, stored.round_id, stored.state, stored.hash):
        raise _changed(stored)
    return entry


def verify(
    run_id: str, spec: Mapping[str, Any], chain: Iterable[StoredEntry], *, published: Mapping[str, Publication]
) -> str:
    """Checks a whole chain from its beginning and gives the last hash; raises LedgerError naming the entry.

    `published` has each attempt at a round that made a model: all of them, and no others, must be charged.
    """
    head, charged = genesis(run_id, spec), dict[str, Publication]()
    for number, stored in enumerate(chain, start=1):
        entry = parse(stored)
        if (entry.sequence, entry.previous_hash) != (number, head):
            raise LedgerError(
                f"entry {number} of the privacy ledger of run {run_id} does not follow the one before it: an entry, "
                "or the run's spec, was changed, added or removed"
            )
        if entry.model_digest is not None:
            charged[entry.round_id] = Publication(entry.charge.epsilon, entry.model_digest)
        head = stored.hash
    for round_id in sorted(charged.keys() | published.keys()):
        if charged.get(round_id) != published.get(round_id):
            raise LedgerError(
                f"the privacy ledger of run {run_id} does not charge what was published: {round_id} cost "
                f"{charged.get(round_id)} by the ledger, and the database has {published.get(round_id)}"
            )
    return head


def _read(text: str) -> LedgerEntry:
    fields = json.loads(text)
    return LedgerEntry(
        **fields
        | {
            "state": LedgerState(fields["state"]),
            "charge": _read_charge(fields["charge"]),
            "noise": fields["noise"] and ReleasedNoise(**fields["noise"]),
            "created_at": datetime.fromisoformat(fields["created_at"]),
        }
    )


def _read_charge(fields: Mapping[str, Any]) -> Charge:
    sums = fields.get("smallest_sums")
    pairs = None if sums is None else tuple((int(survivors), int(count)) for survivors, count in sums)
    return Charge(**{**fields, "smallest_sums": pairs})


def _changed(stored: StoredEntry) -> LedgerError:
    return LedgerError(
        f"entry {stored.sequence} of the privacy ledger of run {stored.run_id} was changed after it was written"
    )


def _hash(text: str) -> str:
    return hashlib.sha256(_TAG + text.encode()).hexdigest()
