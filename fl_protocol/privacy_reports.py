"""What a run's privacy has cost so far, and its ledger, which anyone can check from its first entry to its last."""

import hashlib
import json
from collections.abc import Sequence
from typing import Final

from fl_protocol.messages import ResponseMessage, Timestamp
from fl_protocol.privacy_claims import Adjacency, PrivacyUnit, Trust
from fl_protocol.promises import Promise

_TAG: Final = b"fedquorum/ledger/v1\x00"


class PrivacyReport(ResponseMessage):
    """A run's promise and its budget. What nothing is known of is null: a run without privacy promises nothing.

    `epsilon_spent` is what the client that has taken part most often has spent with all models published so far;
    `epsilon_next` what one more round may bring it to. Where clients account for themselves both are null.
    `sentence` is the sentences of `promise` behind each other.
    """

    run_id: str
    kind: str
    sentence: str
    unit: PrivacyUnit | None
    adjacency: Adjacency | None
    trust: Trust | None
    target_epsilon: float | None
    delta: float | None
    epsilon_spent: float | None
    epsilon_next: float | None
    noise_multiplier: float | None
    num_rounds: int
    num_releases: int
    max_participations: int
    min_separation: int
    accountant: str | None
    ledger_head: str | None
    ledger_length: int
    promise: Promise | None = None


class LedgerEntry(ResponseMessage):
    """One entry of a run's privacy ledger.

    `text` is canonical JSON and holds `previous_hash`, the hash of the entry before it; `entry_hash` is the SHA-256, in
    hexadecimal digits, of the bytes `fedquorum/ledger/v1`, a zero byte, and `text`.
    """

    sequence: int
    round: int
    attempt: int
    state: str
    epsilon: float
    epsilon_renyi: float | None
    delta: float
    noise_multiplier: float
    num_participations: int
    num_updates: int
    model_digest: str | None
    created_at: Timestamp
    entry_hash: str
    text: str


class BrokenLedgerError(ValueError):
    """A ledger's entries do not follow each other: one was changed, left out or put between."""


def check_ledger(entries: Sequence[LedgerEntry]) -> str | None:
    """Checks a ledger from its first entry, offline, and gives the last one's hash; None for an empty one.

    Raises BrokenLedgerError naming the entry. That the first hash belongs to the run's spec only the server's own
    check at its start tells.
    """
    head: str | None = None
    for number, entry in enumerate(entries, start=1):
        stated = json.loads(entry.text)
        if hashlib.sha256(_TAG + entry.text.encode()).hexdigest() != entry.entry_hash:
            raise BrokenLedgerError(
                f"entry {number} of the privacy ledger does not have the hash that it is listed with"
            )
        if stated["sequence"] != number or (head is not None and stated["previous_hash"] != head):
            raise BrokenLedgerError(f"entry {number} of the privacy ledger does not follow the one before it")
        shown = (stated["round"], stated["state"], stated["charge"]["epsilon"], stated["model_digest"])
        if shown != (entry.round, entry.state, entry.epsilon, entry.model_digest):
            raise BrokenLedgerError(f"entry {number} of the privacy ledger is listed with other figures than it holds")
        head = entry.entry_hash
    return head
