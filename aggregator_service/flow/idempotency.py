"""Makes a repeated create answer as the first one did (the Idempotency-Key header)."""

import base64
import hashlib
import hmac
from dataclasses import dataclass

from aggregator_service.storage import tokens
from aggregator_service.storage.tokens import IdempotencyRecord
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.messages import RequestMessage
from fl_protocol.problems import ProblemError, ProblemType


@dataclass(frozen=True, slots=True)
class IdempotentCreate:
    """A create that names itself: whose key it is, the key, and the digest of what was asked for."""

    scope: str
    key: str
    request_digest: str


def idempotent_create(
    *, token_hash: str, path: str, key: str | None, request: RequestMessage
) -> IdempotentCreate | None:
    """Describes a create that carries an Idempotency-Key; None for one without."""
    if key is None:
        return None
    digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
    return IdempotentCreate(scope=f"{token_hash}:{path}", key=key, request_digest=f"sha256:{digest}")


def recall(tx: ReadTx, create: IdempotentCreate | None) -> str | None:
    """Gives the id of what this create made before; raises `idempotency-key-reused` if it asked for something else."""
    if create is None:
        return None
    record = tokens.recall(tx, create.scope, create.key)
    if record is None:
        return None
    if record.request_digest != create.request_digest:
        raise ProblemError(
            ProblemType.IDEMPOTENCY_KEY_REUSED,
            "this Idempotency-Key was used for a create with another body; use a new key for a new create",
        )
    return record.resource_id


def remember(tx: WriteTx, create: IdempotentCreate | None, resource_id: str) -> None:
    """Keeps what this create made."""
    if create is not None:
        tokens.remember(tx, IdempotencyRecord(create.scope, create.key, create.request_digest, resource_id))


def secret_for(create: IdempotentCreate | None, *, bearer: str, entropy: bytes) -> str:
    """Makes the secret part of a new token.

    Tokens are shown once and stored as a hash only, yet a repeated create must show the same one: its secret is
    derived (HMAC-SHA256) from the caller's own token, which the caller brings again and the database does not hold.
    """
    if create is None:
        raw = entropy
    else:
        raw = hmac.digest(bearer.encode(), f"fedquorum token|{create.scope}|{create.key}".encode(), "sha256")
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
