"""The manifests table, a log for each run that only grows, and the signing_keys table with the key that signs it."""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from aggregator_service.domain.sessions.records import ManifestRecord, SignedManifest
from aggregator_service.storage.tables import manifests, signing_keys
from aggregator_service.storage.transactions import ReadTx, WriteTx

_MANIFEST_KEY: Final = "manifest"
_ENTRY: Final = [column for column in manifests.columns if column.name not in ("body", "signature")]
_OF_ROUND: Final = sa.select(*_ENTRY).where(manifests.c.round_id == sa.bindparam("round_id"))
_LAST: Final = (
    sa.select(*_ENTRY)
    .where(manifests.c.run_id == sa.bindparam("run_id"))
    .order_by(manifests.c.sequence.desc())
    .limit(1)
)
_GET: Final = sa.select(manifests).where(
    manifests.c.run_id == sa.bindparam("run_id"), manifests.c.sequence == sa.bindparam("sequence")
)
_BODY: Final = sa.select(manifests.c.body).where(manifests.c.round_id == sa.bindparam("round_id"))
_KEY: Final = sa.select(signing_keys.c.private_key).where(signing_keys.c.name == _MANIFEST_KEY)
_KEEP_KEY: Final = {
    "sqlite": sqlite.insert(signing_keys).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(signing_keys).on_conflict_do_nothing(),
}


def insert(tx: WriteTx, manifest: SignedManifest) -> None:
    """Adds the next manifest of a run, which the transaction has locked."""
    values: dict[str, Any] = {column.name: getattr(manifest.entry, column.name) for column in _ENTRY}
    tx.connection.execute(sa.insert(manifests).values(**values, body=manifest.body, signature=manifest.signature))


def of_round(tx: ReadTx, round_id: str) -> ManifestRecord | None:
    """Gives the entry of an attempt at a round; None where it is not masked."""
    return _entry(tx.connection.execute(_OF_ROUND, {"round_id": round_id}).one_or_none())


def body_of_round(tx: ReadTx, round_id: str) -> bytes:
    """Gives the exact bytes of the manifest of an attempt at a masked round."""
    body: bytes = tx.connection.execute(_BODY, {"round_id": round_id}).scalar_one()
    return body


def last(tx: ReadTx, run_id: str) -> ManifestRecord | None:
    """Gives a run's newest entry."""
    return _entry(tx.connection.execute(_LAST, {"run_id": run_id}).one_or_none())


def get(tx: ReadTx, run_id: str, sequence: int) -> SignedManifest | None:
    """Gives a manifest with its bytes and signature."""
    row = tx.connection.execute(_GET, {"run_id": run_id, "sequence": sequence}).one_or_none()
    entry = _entry(row)
    return None if row is None or entry is None else SignedManifest(entry, row.body, row.signature)


def page(tx: ReadTx, run_id: str, *, after_sequence: int, limit: int) -> list[ManifestRecord]:
    """Lists a run's entries from behind a given one."""
    query = (
        sa.select(*_ENTRY)
        .where(manifests.c.run_id == run_id, manifests.c.sequence > after_sequence)
        .order_by(manifests.c.sequence)
        .limit(limit)
    )
    return [entry for row in tx.connection.execute(query) if (entry := _entry(row)) is not None]


def signing_key(tx: ReadTx) -> bytes | None:
    """Gives the private key that signs manifests; None before it was first needed."""
    key: bytes | None = tx.connection.execute(_KEY).scalar_one_or_none()
    return key


def keep_signing_key(tx: WriteTx, fresh: bytes) -> bytes:
    """Gives the private key that signs manifests, which is `fresh` if there was none."""
    # Another server may have inserted its own first; the insert waits for it, and what is read then is what stands.
    values = {"name": _MANIFEST_KEY, "private_key": fresh, "created_at": tx.now()}
    tx.connection.execute(_KEEP_KEY[tx.dialect], values)
    key: bytes = tx.connection.execute(_KEY).scalar_one()
    return key


def _entry(row: sa.Row[Any] | None) -> ManifestRecord | None:
    if row is None:
        return None
    return ManifestRecord(**{column.name: getattr(row, column.name) for column in _ENTRY})
