"""The tokens and idempotency_keys tables; a token is known only by the SHA-256 of its text."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import TokenKind, TokenRecord
from aggregator_service.storage.rows import changes_one, fields
from aggregator_service.storage.tables import idempotency_keys, tokens
from aggregator_service.storage.transactions import ReadTx, WriteTx

_GET: Final = sa.select(tokens).where(tokens.c.token_hash == sa.bindparam("token_hash"))
_GET_ALL: Final = sa.select(tokens).where(tokens.c.token_hash.in_(sa.bindparam("token_hashes", expanding=True)))


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """What a create with this key made the first time."""

    scope: str
    key: str
    request_digest: str
    resource_id: str


def insert(tx: WriteTx, token: TokenRecord) -> None:
    """Adds a token."""
    tx.connection.execute(
        sa.insert(tokens).values(
            token_hash=token.token_hash,
            kind=token.kind.value,
            client_id=token.client_id,
            max_uses=token.max_uses,
            uses=token.uses,
            expires_at=token.expires_at,
            created_at=token.created_at,
            helper_key=token.helper_key,
        )
    )


def get(tx: ReadTx, token_hash: str) -> TokenRecord | None:
    """Gives a token by its hash; None where it is not known."""
    row = tx.connection.execute(_GET, {"token_hash": token_hash}).one_or_none()
    return None if row is None else _record(row)


def get_all(tx: ReadTx, token_hashes: Collection[str]) -> dict[str, TokenRecord]:
    """Gives tokens by their hashes; one that is not known is left out."""
    rows = tx.connection.execute(_GET_ALL, {"token_hashes": list(token_hashes)})
    return {row.token_hash: _record(row) for row in rows}


def _record(row: sa.Row[Any]) -> TokenRecord:
    values = fields(row)
    return TokenRecord(**values | {"kind": TokenKind(values["kind"])})


def any_operator(tx: ReadTx) -> bool:
    """Tells whether an operator token was ever made."""
    query = sa.select(tokens.c.token_hash).where(tokens.c.kind == TokenKind.OPERATOR.value).limit(1)
    return tx.connection.execute(query).first() is not None


def spend_use(tx: WriteTx, token_hash: str) -> bool:
    """Takes one use of an enrolment token; False if none is left."""
    return changes_one(
        tx,
        sa.update(tokens)
        .where(tokens.c.token_hash == token_hash, tokens.c.uses < tokens.c.max_uses)
        .values(uses=tokens.c.uses + 1),
    )


def revoke_of_client(tx: WriteTx, client_id: str) -> None:
    """Makes a client's tokens stop working."""
    tx.connection.execute(sa.update(tokens).where(tokens.c.client_id == client_id).values(revoked_at=tx.now()))


def revoke_of_helper(tx: WriteTx, signing_key: bytes) -> bool:
    """Makes the tokens for a helper's signing key stop working; False if there was never one."""
    of_key = tokens.c.helper_key == signing_key
    if tx.connection.execute(sa.select(tokens.c.token_hash).where(of_key).limit(1)).first() is None:
        return False
    tx.connection.execute(sa.update(tokens).where(of_key, tokens.c.revoked_at.is_(None)).values(revoked_at=tx.now()))
    return True


def recall(tx: ReadTx, scope: str, key: str) -> IdempotencyRecord | None:
    """Gives what a create with this key made before."""
    query = sa.select(
        idempotency_keys.c.scope,
        idempotency_keys.c.key,
        idempotency_keys.c.request_digest,
        idempotency_keys.c.resource_id,
    ).where(idempotency_keys.c.scope == scope, idempotency_keys.c.key == key)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else IdempotencyRecord(**fields(row))


def remember(tx: WriteTx, record: IdempotencyRecord) -> None:
    """Keeps what a create with this key made."""
    tx.connection.execute(
        sa.insert(idempotency_keys).values(
            scope=record.scope,
            key=record.key,
            request_digest=record.request_digest,
            resource_id=record.resource_id,
            created_at=tx.now(),
        )
    )
