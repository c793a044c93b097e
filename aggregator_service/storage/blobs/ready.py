"""Rows of blobs that begin soon, inserted some at a time: a small file does not wait for a commit of its own.

Their files are made right after the rows, and share the sync of their folder.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import sqlalchemy as sa

from aggregator_service.storage.blobs import chunks
from aggregator_service.storage.blobs.stores import ByteStore
from aggregator_service.storage.blobs.uploads import BlobUpload
from aggregator_service.storage.transactions import Transactions
from fl_protocol.problems import ProblemError

ROWS_AHEAD: Final = 31
READY_SECONDS: Final = 3600.0
"""Rows that wait for longer are left to the sweep of orphans, which takes those of a day ago."""

_LOW: Final = 2
"""When less than one in so many is left, more are inserted while others are still given what is there."""


class ReadyRows:
    """Identifiers of one store's blobs whose rows stand, unsealed, and that nobody has been given."""

    def __init__(self, transactions: Transactions, store: ByteStore, *, rows_ahead: int) -> None:
        self._transactions = transactions
        self._store = store
        self._rows_ahead = rows_ahead
        self._lock = threading.Lock()
        self._inserting = threading.Lock()
        self._ready: deque[tuple[float, str]] = deque()

    def take(self, fresh: str) -> str:
        """Gives an identifier whose row stands; where none is left, inserts rows that are named after a fresh one.

        Raises OSError when the store cannot prepare for them; their rows are then orphans.
        """
        taken = self._pop()
        if taken is None:
            with self._inserting:
                taken = self._pop()
                if taken is None:
                    self._insert(self._named_after(fresh), taken=[fresh])
                    taken = fresh
        elif self._is_low() and self._inserting.acquire(blocking=False):
            try:
                self._fill_up(fresh)
            finally:
                self._inserting.release()
        return taken

    def _fill_up(self, fresh: str) -> None:
        # Somebody else may just have done it.
        if self._is_low():
            # Whoever finds none in the end is told what is wrong.
            with suppress(OSError, ProblemError, sa.exc.SQLAlchemyError):
                self._insert(self._named_after(fresh))

    def _pop(self) -> str | None:
        """Gives the identifier that has waited longest, if there is one."""
        with self._lock:
            while self._ready and time.monotonic() - self._ready[0][0] >= READY_SECONDS:
                self._ready.popleft()
            return self._ready.popleft()[1] if self._ready else None

    def _is_low(self) -> bool:
        return _LOW * len(self._ready) < self._rows_ahead

    def _named_after(self, fresh: str) -> list[str]:
        # The last two digits, which name a folder, stay: one folder's entries are synced for all of them.
        named = {f"{fresh[:-4]}{number:02x}{fresh[-2:]}" for number in range(self._rows_ahead + 1)} - {fresh}
        return sorted(named)[: self._rows_ahead]

    def _insert(self, ahead: list[str], *, taken: Sequence[str] = ()) -> None:
        """Inserts rows, of which those that are `taken` are not kept for others."""
        inserted_at, uploads = time.monotonic(), [BlobUpload(blob_id) for blob_id in (*taken, *ahead)]
        self._transactions.write_blocking("begin_blobs", lambda tx: chunks.insert(tx, uploads, store=self._store.url))
        self._store.make([*taken, *ahead])
        with self._lock:
            self._ready.extend((inserted_at, blob_id) for blob_id in ahead)
