"""A client's one message of helper mode: its vector, masked once for each helper, and the seeds sealed to them."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client_sdk.config import PIECE_BYTES
from client_sdk.errors import UsageError
from client_sdk.masking.identity import Identity
from client_sdk.masking.terms import MaskedRound
from client_sdk.masking.trust import client_id_bytes
from client_sdk.masking.update import MaskedUpdate
from client_sdk.masking.vector import MaskedVector, masked_vector
from fl_protocol.masking.contributions import Head, contribution_message, masks_of, seal_seed
from fl_protocol.masking.errors import KeyRefusedError
from fl_protocol.masking.keys import KEY_BYTES
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation, MaskHelper


@dataclass(frozen=True, slots=True)
class Contribution:
    """What is sent, and nothing else than that; `sha256` is that of all of it."""

    head: bytes
    vector: MaskedVector
    sha256: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.head) + self.vector.num_bytes

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256.hex()}"

    def pieces(self, begin: int = 0) -> Iterator[bytes]:
        """Reads it from byte `begin` on."""
        yield self.head[begin:]
        yield from self.vector.pieces(PIECE_BYTES, max(0, begin - len(self.head)))


def helpers_of(round_: MaskedRound) -> list[MaskHelper]:
    """Gives the helpers of a round's run, in their order; none of a run of another kind."""
    masked = round_.spec.secure_aggregation
    return masked.helpers if isinstance(masked, HelperSecureAggregation) else []


def contribution(update: MaskedUpdate, *, round_: MaskedRound, identity: Identity, folder: Path) -> Contribution:
    """Masks an update with fresh seeds, one for each helper, seals them and signs all of it.

    The seeds are gone when this returns. Raises UsageError for a helper's key that nothing can be sealed to.
    """
    seeds = [bytearray(os.urandom(KEY_BYTES)) for _ in helpers_of(round_)]
    try:
        masks = masks_of(seeds, context=round_.context)
        vector = masked_vector(update, ring=round_.ring, masks=masks, rounding_key=os.urandom(KEY_BYTES), folder=folder)
        head = _head(seeds, vector, round_=round_, identity=identity)
    finally:
        for seed in seeds:
            seed[:] = bytes(len(seed))
    hasher = hashlib.sha256(head)
    for piece in vector.pieces(PIECE_BYTES):
        hasher.update(piece)
    return Contribution(head, vector, hasher.digest())


def _head(seeds: list[bytearray], vector: MaskedVector, *, round_: MaskedRound, identity: Identity) -> bytes:
    client_id, sealed = client_id_bytes(identity.client_id), []
    for number, (seed, helper) in enumerate(zip(seeds, helpers_of(round_), strict=True)):
        try:
            sealed.append(
                seal_seed(
                    seed,
                    bytes.fromhex(helper.sealing_key),
                    context=round_.context,
                    helper=number,
                    client_id=client_id,
                    vector_digest=vector.sha256,
                    ephemeral=os.urandom(KEY_BYTES),
                )
            )
        except KeyRefusedError as error:
            raise UsageError(f"the run's helper {helper.name!r} has no key that can be used: {error}") from None
    message = contribution_message(
        context=round_.context, client_id=client_id, vector_digest=vector.sha256, sealed=sealed
    )
    return Head(identity.sign(message), tuple(sealed)).render()
