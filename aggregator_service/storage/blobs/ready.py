"""Rows of blobs that begin soon, inserted some at a time: a small file does not wait for a commit of its own.

Their files are made right after the rows, and share the sync of their folder.
"""

import threading
import time
from typing import Final

from aggregator_service.storage.blobs import chunks
from aggregator_service.storage.blobs.stores import ByteStore
from aggregator_service.storage.blobs.uploads import BlobUpload
from aggregator_service.storage.transactions import Transactions

ROWS_AHEAD: Final = 31
READY_SECONDS: Final = 3600.0
"""Rows that wait for longer are left to the sweep of orphans, which takes those of a day ago."""


class ReadyRows:
    """Identifiers of one store's blobs whose rows stand, unsealed, and that nobody has been given."""

    def __init__(self, transactions: Transactions, store: ByteStore, *, rows_ahead: int) -> None:
        self._transactions = transactions
        self._store = store
        self._rows_ahead = rows_ahead
        self._lock = threading.Lock()
        self._identifiers: list[str] = []
        self._inserted_at = 0.0

    def take(self, fresh: str) -> str:
        """Gives an identifier whose row stands; where none is left, inserts rows that are named after a fresh one.

        Raises OSError when the store cannot prepare for them; their rows are then orphans.
        """
        with self._lock:
            if self._identifiers and time.monotonic() - self._inserted_at < READY_SECONDS:
                return self._identifiers.pop()
            # The last two digits, which name a folder, stay: one folder's entries are synced for all of them.
            named = {f"{fresh[:-4]}{number:02x}{fresh[-2:]}" for number in range(self._rows_ahead + 1)} - {fresh}
            ahead = sorted(named)[: self._rows_ahead]
            uploads = [BlobUpload(blob_id) for blob_id in (fresh, *ahead)]
            self._transactions.write_blocking(
                "begin_blobs", lambda tx: chunks.insert(tx, uploads, store=self._store.url)
            )
            self._store.make([fresh, *ahead])
            self._identifiers, self._inserted_at = ahead, time.monotonic()
            return fresh
