"""What a private run leaves in the server's database, read from outside: keys, the ledger, remains."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.support.stored import Stored, with_driver

_TAG = b"fedquorum/ledger/v1\0"


@dataclass
class Vault:
    """One server's database, looked into and, as an attacker would, changed."""

    database_url: str

    def rows(self, query: str, **values: Any) -> Sequence[Any]:
        """Reads rows."""
        engine = sa.create_engine(with_driver(self.database_url), poolclass=NullPool)
        with engine.connect() as connection:
            return connection.execute(sa.text(query), values).all()

    def change(self, *statements: str, **values: Any) -> None:
        """Runs statements in one transaction."""
        engine = sa.create_engine(with_driver(self.database_url), poolclass=NullPool)
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement), values)

    def disarm(self) -> None:
        """Drops the triggers that keep the ledger as it is, which whoever owns the database can."""
        if self.database_url.startswith("sqlite"):
            for verb in ("update", "delete", "replace"):
                self.change(f"DROP TRIGGER privacy_ledger_no_{verb}")
        else:
            self.change("DROP TRIGGER privacy_ledger_no_change ON privacy_ledger")

    def keys(self) -> dict[str, bytes]:
        """Gives the keys of noise that are kept now, by their rounds."""
        return {round_id: bytes(key) for round_id, key in self.rows("SELECT round_id, key FROM noise_keys")}

    def entries(self, run_id: str) -> list[dict[str, Any]]:
        """Gives a run's ledger, each entry held against the hash of the one before."""
        query = "SELECT entry, entry_hash FROM privacy_ledger WHERE run_id = :run_id ORDER BY sequence"
        entries, head = [], None
        for number, (text, entry_hash) in enumerate(self.rows(query, run_id=run_id), start=1):
            entry = json.loads(text)
            assert entry["sequence"] == number
            assert head in (None, entry["previous_hash"])
            head = hashlib.sha256(_TAG + text.encode()).hexdigest()
            assert head == entry_hash
            entries.append(entry)
        return entries

    def check_charged(self, run_id: str) -> None:
        """Whatever may be read is charged, once; and a key is there for a sealed round alone."""
        spent = [entry for entry in self.entries(run_id) if entry["state"] == "spent"]
        assert set(Counter(entry["round_id"] for entry in spent).values()) <= {1}
        charged = {entry["model_digest"] for entry in spent}
        models = self.rows("SELECT version, digest FROM models WHERE run_id = :run_id AND version > 0", run_id=run_id)
        initial = {digest for (digest,) in self.rows("SELECT digest FROM models WHERE version = 0")}
        assert {digest for _, digest in models} - initial == charged
        sealed = {name for (name,) in self.rows("SELECT round_id FROM rounds WHERE state = 'aggregating'")}
        assert self.keys().keys() == sealed

    def where_kept(self, secrets: Iterable[bytes], folder: Path) -> list[str]:
        """Names the tables' values and the files below a folder that hold any of these, plain or written out."""
        forms = [form for secret in secrets for form in _forms(secret)]
        with Stored(self.database_url) as stored:
            kept = [("tables", b"\n".join(stored.values()))]
        kept += [(path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
        return [name for name, content in kept if any(form in content for form in forms)]

    def check_nothing_secret_is_left(self) -> None:
        """After a run's end there is no key, no state of its noise, and no bytes that nothing refers to."""
        assert self.keys() == {}
        assert self.rows("SELECT * FROM noise_states") == []
        used = {name for (name,) in self.rows("SELECT blob_id FROM models UNION SELECT blob_id FROM updates")}
        assert {name for (name,) in self.rows("SELECT blob_id FROM blobs WHERE sealed")} == used
        assert {name for (name,) in self.rows("SELECT blob_id FROM blob_chunks")} <= {
            name for (name,) in self.rows("SELECT blob_id FROM blobs")
        }


def _forms(secret: bytes) -> list[bytes]:
    return [secret, secret.hex().encode(), base64.b64encode(secret)[:-2], repr(secret)[2:-1].encode()]


def states(entries: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, str]]:
    """Gives (round, attempt, state) of each entry."""
    return [(entry["round"], entry["attempt"], entry["state"]) for entry in entries]
