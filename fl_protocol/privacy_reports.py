"""What a run's privacy has cost so far, and its ledger, which anyone can check from its first entry to its last."""

from fl_protocol.messages import ResponseMessage, Timestamp
from fl_protocol.privacy_claims import Adjacency, PrivacyUnit, Trust


class PrivacyReport(ResponseMessage):
    """A run's promise and its budget. What nothing is known of is null: a run without privacy promises nothing.

    `epsilon_spent` is what the client that has taken part most often has spent with all models published so far;
    `epsilon_next` what one more round may bring it to. Where clients account for themselves both are null.
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
