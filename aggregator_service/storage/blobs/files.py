"""Blobs as files: each write is durable, with its directory entry, before anybody hears of it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from aggregator_service.storage.blobs.stores import BlobStoreError, check_blob_id
from aggregator_service.storage.blobs.uploads import BlobCorruptError

_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_MOST_PARTS: Final = 64
"""One call takes 1024 on Linux; POSIX promises 16."""
_CLOSED_ON_EXEC: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class FileStore:
    """Files that are named by their blobs' ids, in up to 256 folders inside one.

    A file is written under its own name from the start: what makes it a blob is the row that says so, not the name.
    Those that are made ahead, some at a time, share the sync of their folder: a small blob then is one durable write.
    """

    unit: int = 1

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder
        self._made: set[str] = set()

    def check(self) -> None:
        # One name: what a start leaves that is killed right here, the next one removes.
        probe = self._folder / "probe"
        try:
            self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            with _opened(probe, os.O_WRONLY | os.O_CREAT) as file:
                os.write(file, b"x")
                os.fsync(file)
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise BlobStoreError(f"blob store {self.url!r}: the folder cannot be written: {error.strerror}") from None

    def make(self, blob_ids: Sequence[str]) -> None:
        paths = [self._path(blob_id) for blob_id in blob_ids]
        shards = {path.parent for path in paths}
        for shard in shards:
            self._make_shard(shard)
        for path in paths:
            with _opened(path, os.O_WRONLY | os.O_CREAT):
                pass
        for shard in shards:
            _sync_folder(shard)
        self._made.update(blob_ids)

    def write(self, blob_id: str, begin: int, parts: Sequence[memoryview]) -> None:
        # A file that is found may be one whose name an earlier process could not sync any more.
        if begin == 0 and blob_id not in self._made:
            self.make([blob_id])
        # What a sync fails to write must not be believed later: with O_DSYNC it is the write itself that fails.
        with _opened(self._path(blob_id), os.O_WRONLY | os.O_DSYNC) as file:
            left = list(parts)
            while left:
                written = os.pwritev(file, left[:_MOST_PARTS], begin)
                begin += written
                left = _behind(left, written)
        self._made.discard(blob_id)

    def read(self, blob_id: str, begin: int, end: int) -> bytes:
        try:
            with _opened(self._path(blob_id), os.O_RDONLY) as file:
                data = os.pread(file, end - begin, begin)
                while len(data) < end - begin and (more := os.pread(file, end - begin - len(data), begin + len(data))):
                    data += more
        except FileNotFoundError:
            raise BlobCorruptError(f"the file of blob {blob_id} is missing") from None
        if len(data) != end - begin:
            raise BlobCorruptError(f"the file of blob {blob_id} ends before byte {end}")
        return data

    def remove(self, blob_id: str) -> None:
        with suppress(FileNotFoundError):
            self._path(blob_id).unlink()

    def open(self, blob_id: str, num_bytes: int) -> int:
        """Opens a blob's file for reading and gives its descriptor, which the caller closes.

        Raises BlobCorruptError if it is missing or does not have its number of bytes.
        """
        try:
            descriptor = os.open(self._path(blob_id), os.O_RDONLY | _CLOSED_ON_EXEC)
        except FileNotFoundError:
            raise BlobCorruptError(f"the file of blob {blob_id} is missing") from None
        if (found := os.fstat(descriptor).st_size) != num_bytes:
            os.close(descriptor)
            raise BlobCorruptError(f"the file of blob {blob_id} has {found} bytes instead of {num_bytes}")
        return descriptor

    def _path(self, blob_id: str) -> Path:
        return self._folder / check_blob_id(blob_id)[-2:] / blob_id

    def _make_shard(self, shard: Path) -> None:
        try:
            shard.mkdir(mode=_FOLDER_MODE)
        except FileExistsError:
            return
        _sync_folder(self._folder)


def _behind(parts: Sequence[memoryview], num_bytes: int) -> list[memoryview]:
    """Gives what is left of parts behind so many bytes; empty ones are left out."""
    left = []
    for part in parts:
        if num_bytes < len(part):
            left.append(part[num_bytes:])
        num_bytes = max(num_bytes - len(part), 0)
    return left


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | _CLOSED_ON_EXEC, _MODE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)
