"""Writes a blob while it is computed: another thread hashes the bytes and waits for the disk."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from aggregator_service.flow.context import Flow
from aggregator_service.storage.blobs import BlobUpload

_PIECE_NUM_BYTES: Final = 1 << 20
_MOST_PIECES: Final = 4
"""So many pieces wait for the other thread at most: whoever is faster waits for it."""


class HashedUpload:
    """Stores bytes in the order they come and keeps their digest, both of which are known once it is closed.

    What fits into one piece is written without another thread. One thread at a time may call its methods.
    """

    def __init__(self, flow: Flow) -> None:
        self.upload = BlobUpload(flow.new_id("blob"))
        self._hash = hashlib.sha256()
        self._flow = flow
        self._gathered = bytearray()
        self._pool: ThreadPoolExecutor | None = None
        self._writing: deque[Future[None]] = deque()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Takes the next bytes; raises what an earlier write raised."""
        self._gathered += data
        if len(self._gathered) < _PIECE_NUM_BYTES:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        while len(self._writing) >= _MOST_PIECES:
            self._writing.popleft().result()
        piece, self._gathered = self._gathered, bytearray()
        self._writing.append(self._pool.submit(self._take, piece))

    def finish(self) -> None:
        """Makes everything durable that is not written by the transaction that seals it; nothing may follow."""
        while self._writing:
            self._writing.popleft().result()
        self._take(self._gathered)
        self.close()
        if self.upload.num_bytes:
            self._flow.blobs.finish_blocking(self.upload)

    def close(self) -> None:
        """Waits for what is being written and leaves the rest."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _take(self, data: bytearray) -> None:
        self._hash.update(data)
        self.upload.append(data)
        if self.upload.is_due:
            self._flow.blobs.flush_blocking(self.upload)
