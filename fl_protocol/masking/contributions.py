"""Helper mode: the one message of a client, and what its masks are made of, byte for byte.

contribution: signature(64), then a sealed seed of 80 bytes for each helper in the run's order, then the masked vector.
The signature is over `flsa/v1/contribution` and a zero byte, context(32), client_id(16), SHA-256 of the vector(32) and
the sealed seeds. A seed of 32 bytes is sealed by HPKE with the context as its info, and with helper(4) client_id(16)
SHA-256 of the vector(32) as associated data.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fl_protocol.masking import hpke, keys
from fl_protocol.masking.errors import KeyRefusedError, MessageError, ShareError
from fl_protocol.masking.keys import DIGEST_BYTES, KEY_BYTES, SIGNATURE_BYTES, Secret, u32
from fl_protocol.masking.messages import CLIENT_ID_BYTES
from fl_protocol.masking.prg import Mask

SEALED_BYTES: Final = KEY_BYTES + hpke.OVERHEAD_BYTES
MAX_HELPERS: Final = 8


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the masked vector: the client's signature of everything, and a sealed seed for each helper."""

    signature: bytes
    sealed: tuple[bytes, ...]

    def render(self) -> bytes:
        return self.signature + b"".join(self.sealed)


def head_bytes(num_helpers: int) -> int:
    """Gives how many bytes stand before the vector."""
    return SIGNATURE_BYTES + num_helpers * SEALED_BYTES


def parse_head(data: bytes, *, num_helpers: int) -> Head:
    """Reads what stands before the vector; raises MessageError. The signature is not looked at."""
    expected = head_bytes(num_helpers)
    if len(data) != expected:
        raise MessageError(
            "contribution",
            value=len(data),
            bound=expected,
            what=f"a head of {len(data)} bytes instead of {expected} for {num_helpers} helpers",
        )
    begins = range(SIGNATURE_BYTES, expected, SEALED_BYTES)
    return Head(bytes(data[:SIGNATURE_BYTES]), tuple(bytes(data[at : at + SEALED_BYTES]) for at in begins))


def masks_of(seeds: Sequence[Secret], *, context: bytes) -> tuple[Mask, ...]:
    """Gives the masks that a client adds to its vector, of one seed of 32 fresh random bytes for each helper."""
    return tuple(Mask(keys.helper_mask_key(seed, context=context, helper=helper)) for helper, seed in enumerate(seeds))


def seal_seed(
    seed: Secret,
    sealing_key: bytes,
    *,
    context: bytes,
    helper: int,
    client_id: bytes,
    vector_digest: bytes,
    ephemeral: Secret,
) -> bytes:
    """Seals a seed to a helper's public key; `ephemeral` are 32 fresh random bytes."""
    return hpke.seal_to(
        sealing_key,
        seed,
        info=context,
        associated=_associated(helper, client_id, vector_digest),
        ephemeral=ephemeral,
    )


def open_seed(
    sealed: bytes, private_key: Secret, *, context: bytes, helper: int, client_id: bytes, vector_digest: bytes
) -> bytearray:
    """Opens a sealed seed with a helper's private key; raises ShareError unless it was sealed for exactly this."""
    associated = _associated(helper, client_id, vector_digest)
    try:
        seed = hpke.open_sealed(private_key, sealed, info=context, associated=associated)
    except KeyRefusedError as error:
        raise ShareError("sealed", value=len(sealed), bound=SEALED_BYTES, what=str(error)) from None
    if len(seed) != KEY_BYTES:
        raise ShareError("sealed", value=len(seed), bound=KEY_BYTES, what=f"it holds {len(seed)} bytes and no seed")
    return seed


def contribution_message(*, context: bytes, client_id: bytes, vector_digest: bytes, sealed: Sequence[bytes]) -> bytes:
    """Gives what a contribution's signature signs."""
    _check_sizes(client_id, vector_digest)
    return b"".join((keys.tag("contribution"), context, client_id, vector_digest, *sealed))


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """Gives the SHA-256 by which a vector is named."""
    return hashlib.sha256(data).digest()


def _associated(helper: int, client_id: bytes, vector_digest: bytes) -> bytes:
    _check_sizes(client_id, vector_digest)
    return u32(helper) + client_id + vector_digest


def _check_sizes(client_id: bytes, vector_digest: bytes) -> None:
    for name, value, size in (("client_id", client_id, CLIENT_ID_BYTES), ("digest", vector_digest, DIGEST_BYTES)):
        if len(value) != size:
            raise MessageError(
                f"contribution.{name}", value=len(value), bound=size, what=f"{len(value)} bytes instead of {size}"
            )
