"""What a helper has released, in a file that only grows: written and on the disk before an answer leaves.

A line is a JSON object; `previous` is the SHA-256 of the line before, so that a line that was changed or taken out is
noticed at the next start. Of two sums over different sets of the same round's updates a server could take the
difference: whoever is in this log is not told of again in the same round, but in the very same set.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self

from client_sdk.durability import sync_folder
from client_sdk.errors import UsageError

FILE_NAME: Final = "releases.jsonl"
FIRST: Final = hashlib.sha256(b"fedquorum/mask-releases/v1\0").hexdigest()


@dataclass(frozen=True, slots=True)
class Release:
    """A set of clients whose masks' sum was told: for which round of which run, on which model, by its digest."""

    run_id: str
    round: int
    model_digest: str
    members_digest: str
    clients: tuple[str, ...]

    @property
    def place(self) -> tuple[str, int, str]:
        """A rollback begins a round anew from another model, whose updates are others."""
        return self.run_id, self.round, self.model_digest


@dataclass
class ReleaseLog:
    """The log in a helper's folder, held by one process at a time."""

    path: Path
    file: IO[bytes] | None = None
    head: str = FIRST
    count: int = 0
    released: dict[tuple[str, int, str], dict[str, str]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens the log, or begins one; raises UsageError if it is damaged or another process holds it."""
        path = Path(folder) / FILE_NAME
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        log = cls(path, os.fdopen(descriptor, "r+b", buffering=0))
        try:
            _hold(log._held, path)
            log._read()
        except BaseException:
            log.close()
            raise
        sync_folder(path.parent)
        return log

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def told_before(self, place: tuple[str, int, str], clients: Iterable[str], *, members_digest: str) -> list[str]:
        """Names those of some clients that were told of in another set of the same round."""
        known = self.released.get(place, {})
        return [client for client in clients if known.get(client, members_digest) != members_digest]

    def note(self, release: Release, *, now: str) -> None:
        """Writes a release down, durably; the same one again is not written twice.

        Raises UsageError for a client that was told of in another set: nothing is written then.
        """
        again = self.told_before(release.place, release.clients, members_digest=release.members_digest)
        if again:
            raise UsageError(f"{again[0]} was told of before in round {release.round} of {release.run_id}")
        known = self.released.get(release.place, {})
        if all(client in known for client in release.clients):
            return
        entry = {
            "sequence": self.count + 1,
            "run_id": release.run_id,
            "round": release.round,
            "model_digest": release.model_digest,
            "members_digest": release.members_digest,
            "clients": list(release.clients),
            "released_at": now,
            "previous": self.head,
        }
        line = json.dumps(entry, sort_keys=True).encode() + b"\n"
        self._append(line)
        self._take(line, entry)

    @property
    def _held(self) -> IO[bytes]:
        if self.file is None:
            raise RuntimeError("the log of releases is closed")
        return self.file

    def _append(self, line: bytes) -> None:
        end = self._held.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += self._held.write(line[written:]) or 0
            os.fsync(self._held.fileno())
        except OSError as error:
            # A part of a line would break the chain for every later one.
            self._held.truncate(end)
            raise UsageError(f"{self.path} cannot be written, so nothing is released: {error.strerror}") from None

    def _read(self) -> None:
        self._held.seek(0)
        content = b"".join(iter(lambda: self._held.read(1 << 20), b""))
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(keepends=True), start=1):
            self._take(line, self._entry(line, number))
        if whole < len(content):
            # The process died while it wrote this line: it was never on the disk as a whole, so nothing was released.
            self._held.truncate(whole)
            os.fsync(self._held.fileno())

    def _entry(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            is_next = entry["sequence"] == number and entry["previous"] == self.head
            place = (str(entry["run_id"]), int(entry["round"]), str(entry["model_digest"]))
            is_whole = bool(place) and all(isinstance(client, str) for client in entry["clients"])
        except (ValueError, KeyError, TypeError, RecursionError):
            entry, is_next, is_whole = {}, False, False
        if not is_next or not is_whole:
            raise UsageError(
                f"{self.path}, line {number}: it does not follow on the line before; without the whole log this helper "
                "cannot know whom it has told of: restore it from a copy"
            )
        return dict(entry)

    def _take(self, line: bytes, entry: dict[str, Any]) -> None:
        place = (entry["run_id"], entry["round"], entry["model_digest"])
        known = self.released.setdefault(place, {})
        known.update(dict.fromkeys(entry["clients"], entry["members_digest"]))
        self.head, self.count = hashlib.sha256(line).hexdigest(), self.count + 1


def _hold(file: IO[bytes], path: Path) -> None:
    """Keeps a second process from the log; where the system has no such locks, nothing does."""
    try:
        import fcntl  # noqa: PLC0415 - only where there is one
    except ModuleNotFoundError:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(f"{path} is held by another process: a helper runs once") from None
