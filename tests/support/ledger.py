"""What clients know for certain: who was acknowledged for what, and the model that follows from it exactly.

Each client's delta is zero but for a coordinate of its own and the last one, which all share: from a model one can read
who was counted and how often, and the shared coordinate would show an order of addition. All numbers are dyadic and the
weights sum to a power of two, so the exact mean is a float64 and there is a single right answer, bit for bit.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.support.participant import Tensors, unpack, update_body

WEIGHTS = (1, 2, 3, 4, 6)
NUM_CLIENTS = len(WEIGHTS)
_SHARED_GRID = 2.0**-15


@dataclass(frozen=True)
class Acknowledgement:
    """A receipt that a client holds."""

    round: int
    client: int
    digest: str
    update_id: str


@dataclass
class Ledger:
    """The receipts of all clients; the same update may be acknowledged again, by the same receipt."""

    _receipts: dict[tuple[int, int], Acknowledgement] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, client: int, body: bytes, receipt: Mapping[str, Any]) -> None:
        """Notes a receipt; fails if it contradicts an earlier one or what was sent."""
        made = Acknowledgement(receipt["round"], client, receipt["digest"], receipt["update_id"])
        assert made.digest == digest_of(body)
        with self._lock:
            earlier = self._receipts.setdefault((made.round, client), made)
        assert earlier == made, f"two receipts for one update: {earlier} and {made}"

    def of_round(self, number: int) -> list[Acknowledgement]:
        """Lists the receipts of a round."""
        with self._lock:
            return [held for (round_, _), held in self._receipts.items() if round_ == number]


def digest_of(body: bytes) -> str:
    """Gives the digest of a body."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def initial_model(num_padding: int = 0) -> Tensors:
    """Makes the model of such a run; padding makes it large."""
    model: Tensors = {"seen": np.zeros(NUM_CLIENTS + 1, dtype=np.float32)}
    if num_padding:
        model["padding"] = np.zeros(num_padding, dtype=np.float32)
    return model


def delta_of(client: int, round_number: int) -> NDArray[np.float32]:
    """Gives what a client adds in a round: a function of nothing else, so every run of it sends the same bytes."""
    values = np.zeros(NUM_CLIENTS + 1, dtype=np.float32)
    values[client] = ((round_number * 7 + client * 3) % 13 + 1) / 8
    shared = np.random.default_rng([client, round_number]).uniform(-256, 256)
    values[-1] = np.round(shared / _SHARED_GRID) * _SHARED_GRID
    return values


def body_of(client: int, round_number: int, num_padding: int = 0) -> bytes:
    """Writes a client's update."""
    delta: Tensors = {"seen": delta_of(client, round_number)}
    if num_padding:
        delta["padding"] = np.full(num_padding, _padding_of(client), dtype=np.float32)
    return update_body(delta, num_examples=WEIGHTS[client], metrics={"client": float(client)})


def _padding_of(client: int) -> float:
    return (client + 1) / 4


def _total_weight(clients: Sequence[int]) -> int:
    return sum(WEIGHTS[client] for client in clients)


def exact_step(base: NDArray[np.float32], round_number: int, clients: Sequence[int]) -> NDArray[np.float32]:
    """Adds the weighted mean of some clients' deltas to a model with exact arithmetic, and rounds once."""
    total = _total_weight(clients)
    exact = [Fraction(float(value)) for value in base]
    for client in clients:
        for at, value in enumerate(delta_of(client, round_number)):
            exact[at] += Fraction(float(value)) * WEIGHTS[client] / total
    return np.array([float(value) for value in exact], dtype=np.float32)


def check_run(http: httpx.Client, run_id: str, ledger: Ledger, *, participants: Sequence[str]) -> list[str]:
    """Holds a finished run against the ledger, and gives the digest of each of its models.

    `participants` are the ids of the clients in the order of their coordinates. Every acknowledged update is in its
    round's list, nobody is there twice, nobody who never sent, and each model is what its members make it, exactly.
    """
    latest = http.get(f"/v1/runs/{run_id}").json()["latest_version"]
    digests: list[str] = []
    model, padding = initial_model()["seen"], 0.0
    for version in range(latest + 1):
        answer = http.get(f"/v1/runs/{run_id}/models/{version}")
        digest = digest_of(answer.content)
        assert answer.headers["etag"].strip('"') == digest
        if version:
            members = _members(http, run_id, ledger, number=version, participants=participants)
            model = exact_step(model, version, members)
            padding += sum((_padding_of(client) * WEIGHTS[client] for client in members), 0.0) / _total_weight(members)
        found = unpack(answer.content)
        np.testing.assert_array_equal(found["seen"], model)
        assert np.all(found.get("padding", np.float32(padding)) == np.float32(padding))
        digests.append(digest)
    assert not ledger.of_round(latest + 1), "an update was acknowledged for a round that made no model"
    return digests


def _members(http: httpx.Client, run_id: str, ledger: Ledger, *, number: int, participants: Sequence[str]) -> list[int]:
    path = f"/v1/runs/{run_id}/rounds/{number}"
    round_ = http.get(path).json()
    listed = http.get(f"{path}/updates").json()["items"]
    counts = Counter(member["client_id"] for member in listed)
    assert (round_["state"], round_["attempt"], round_["result_version"]) == ("completed", 1, number)
    assert (round_["num_updates"], set(counts.values())) == (len(listed), {1})
    members = {participants.index(member["client_id"]): member for member in listed}
    receipts = ledger.of_round(number)
    assert {held.client for held in receipts} == set(members)
    for held in receipts:
        assert members[held.client]["digest"] == held.digest
        assert members[held.client]["update_id"] == held.update_id
    for client, member in members.items():
        assert member["weight"] == WEIGHTS[client]
    return sorted(members)
