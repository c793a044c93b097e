"""Requests to a helper as a server would make them, right or wrong, without a server."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from client_sdk.mask_helper import HelperKeys
from fl_protocol.helper_mode import MaskRequestEntry, MaskRequestState, MaskSumState
from fl_protocol.manifests import Manifest
from fl_protocol.masked_vectors import manifest_of, render_manifest, ring_of
from fl_protocol.masking import keys
from fl_protocol.masking.contributions import contribution_message, masks_of, seal_seed
from fl_protocol.masking.mask_requests import Contributor, MaskRequest
from fl_protocol.masking.prg import apply_masks
from fl_protocol.masking.ring import Ring, unpack
from fl_protocol.runs import RunSpec
from fl_protocol.tensors import Header, TensorSpec

NUM_COORDINATES = 10
RUN = "run_" + "5" * 32


@dataclass
class Client:
    """A client's identity, and the seeds that it drew last."""

    number: int
    identity: bytes = field(default_factory=lambda: os.urandom(32))
    seeds: list[bytes] = field(default_factory=list)

    @property
    def client_id(self) -> bytes:
        return bytes([self.number]) * 16

    @property
    def name(self) -> str:
        return f"client_{self.client_id.hex()}"

    @property
    def public_key(self) -> bytes:
        return keys.identity_public_key(self.identity)

    def contribute(self, helpers: Sequence[HelperKeys], context: bytes, /, **seal: Any) -> Contributor:
        """Makes this client's record for a request; `seal` changes what a seed is sealed for."""
        self.seeds = [os.urandom(32) for _ in helpers]
        digest = hashlib.sha256(os.urandom(8)).digest()
        sealed = tuple(
            seal_seed(
                seed,
                helper.sealing_key,
                ephemeral=os.urandom(32),
                **{"context": context, "helper": place, "client_id": self.client_id, "vector_digest": digest} | seal,
            )
            for place, (seed, helper) in enumerate(zip(self.seeds, helpers, strict=True))
        )
        message = contribution_message(context=context, client_id=self.client_id, vector_digest=digest, sealed=sealed)
        return Contributor(self.client_id, self.public_key, digest, keys.sign(self.identity, message), sealed)


@dataclass
class Asking:
    """A round of a run in helper mode, and what its server may ask."""

    helpers: list[HelperKeys]
    round: int = 1
    attempt: int = 1
    model: bytes = b"model"
    secure: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> RunSpec:
        secure = {"kind": "helper", "min_members": 3, "helpers": [one.public.model_dump() for one in self.helpers]}
        return RunSpec.model_validate({"round": {"quorum": 5}, "secure_aggregation": secure | dict(self.secure)})

    @property
    def ring(self) -> Ring:
        return ring_of(self.spec)

    @property
    def manifest(self) -> Manifest:
        tensor = TensorSpec("w", "F32", (NUM_COORDINATES,), 0, 4 * NUM_COORDINATES)
        return manifest_of(
            self.spec,
            Header((tensor,), {}, 0, 4 * NUM_COORDINATES),
            run_id=RUN,
            round_number=self.round,
            attempt=self.attempt,
            sequence=self.round,
            previous_digest=None,
            not_after=datetime.now(UTC) + timedelta(days=1),
            base_version=self.round - 1,
            model_digest=f"sha256:{hashlib.sha256(self.model).hexdigest()}",
            model_num_bytes=100,
        )

    def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = render_manifest(self.manifest)
        return self._body

    @property
    def context(self) -> bytes:
        return keys.context(self.body())

    def members(self, clients: Sequence[Client]) -> tuple[Contributor, ...]:
        return tuple(client.contribute(self.helpers, self.context) for client in clients)

    def request(self, members: Sequence[Contributor], helper: int = 0) -> bytes:
        return MaskRequest(helper, len(self.helpers), self.body(), tuple(members)).render()

    def entry(self, **changes: Any) -> MaskRequestEntry:
        told = {
            "request_id": "ask_" + "7" * 32,
            "run_id": RUN,
            "round": self.round,
            "attempt": self.attempt,
            "helper": 0,
            "state": MaskRequestState.READY,
            "phase": MaskSumState.RELEASING,
            "num_members": 3,
            "num_bytes": 0,
            "deadline_at": datetime.now(UTC),
        }
        return MaskRequestEntry(**told | changes)

    def expected(self, clients: Sequence[Client], helper: int = 0) -> Any:
        """Gives the sum of the clients' masks, made from the seeds themselves."""
        total = np.zeros(NUM_COORDINATES + len(self.ring.extras), dtype=self.ring.dtype)
        for client in clients:
            apply_masks(total, masks_of(client.seeds, context=self.context)[helper : helper + 1])
        return total & np.array(2**self.ring.bits - 1, dtype=self.ring.dtype)


def words_of(answer: bytes, ring: Ring) -> Any:
    """Gives the elements behind an answer's signature."""
    return unpack(answer[64:], ring.bits)
