"""What a client has let out in a run: its own count of its updates, which no server can make smaller.

A line of JSON is appended, and on the disk, before an update is sent: a crash may count an update that never left, and
never forgets one that did. What became of an update is appended once that is known.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from client_sdk.durability import sync_folder
from client_sdk.errors import AlreadySubmittedError, ServerError, UsageError
from fl_protocol.identifiers import is_identifier

FILE_NAME: Final = "privacy.jsonl"

_FIRST_SERVER_FAULT: Final = 500


class Outcome(StrEnum):
    """What became of an update: it may have left, it counts, or the server said that it does not count."""

    SENT = "sent"
    ACCEPTED = "accepted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """The newest entry of the run's ledger that this client has seen."""

    head: str | None = None
    length: int = 0


@dataclass(slots=True)
class Participations:
    """What is known of this client's updates in a run: outcomes by task, messages by their digest, and the ledger.

    `survivors` tells of masked messages how many clients' went into the same sum: 0 where their masks stayed on.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    messages: set[tuple[str, str]] = field(default_factory=set)
    survivors: dict[tuple[str, str], int] = field(default_factory=dict)
    ledger: LedgerHead = LedgerHead()
    promise: Mapping[str, Any] | None = None

    @property
    def sums(self) -> Counter[int]:
        """How many sums of so many clients' masked updates this client's own went into, as far as it knows."""
        return Counter(survivors for survivors in self.survivors.values() if survivors)

    @property
    def num_accepted(self) -> int:
        """How many updates the server has acknowledged."""
        return sum(outcome is Outcome.ACCEPTED for outcome in self.outcomes.values())

    def num_counting_after(self, task_id: str, *, each_message: bool) -> int:
        """Gives how many updates may count once the task's is sent: never less than do.

        With `each_message` every message that may have left counts, also one that came too late and a second one for
        the same task: whoever reads them need not be the server's aggregation. Under masks nobody reads it that went
        into no sum.
        """
        if each_message:
            return sum(self.survivors.get(message) != 0 for message in self.messages) + 1
        counting = {task for task, outcome in self.outcomes.items() if outcome is not Outcome.REFUSED}
        return len(counting | {task_id})


class PrivacyHistory:
    """One client's history in one run, in memory, and in `state_dir`/RUN_ID/privacy.jsonl if that is given."""

    def __init__(self, run_id: str, state_dir: Path | None) -> None:
        if state_dir is not None and not is_identifier(run_id):
            raise UsageError(f"{run_id[:64]!r} is not a run's id; nothing can be kept for it in {state_dir}")
        self._path: Final = None if state_dir is None else Path(state_dir) / run_id / FILE_NAME
        self._known: Participations | None = None

    @property
    def is_durable(self) -> bool:
        """Whether the count outlives this process."""
        return self._path is not None

    def load(self) -> Participations:
        """Gives what is known; raises UsageError for a damaged file, which must not be taken for an empty one."""
        if self._known is None:
            known = Participations()
            for entry in () if self._path is None else _read(self._path):
                _apply(known, entry)
            self._known = known
        return self._known

    def sending(self, task_id: str, digest: str) -> None:
        """Counts an update that is about to leave, durably."""
        self._append({"task": task_id, "outcome": Outcome.SENT.value, "digest": digest})

    def summed(self, task_id: str, digest: str, num_survivors: int) -> None:
        """Notes into how large a sum a masked update went, by a list of survivors that this client has checked.

        0 if its session ended before this client had signed such a list: no quorum that it knows of let go of masks.
        """
        self._append({"task": task_id, "digest": digest, "survivors": num_survivors})

    def answered(self, task_id: str, outcome: Outcome) -> None:
        """Notes what the server said of an update."""
        self._append({"task": task_id, "outcome": outcome.value})

    def promised(self, promise: Mapping[str, Any]) -> None:
        """Keeps the run's promise as the first task stated it."""
        self._append({"promise": dict(promise)})

    def saw_ledger(self, seen: LedgerHead) -> None:
        """Keeps the newest ledger head."""
        if seen != self.load().ledger:
            self._append({"ledger_head": seen.head, "ledger_length": seen.length})

    def _append(self, entry: Mapping[str, Any]) -> None:
        known = self.load()
        if self._path is not None:
            _append_line(self._path, json.dumps(entry, sort_keys=True))
        _apply(known, entry)


def _apply(known: Participations, entry: Mapping[str, Any]) -> None:
    if "survivors" in entry:
        known.survivors[str(entry["task"]), str(entry["digest"])] = int(entry["survivors"])
    elif "task" in entry:
        task, outcome = str(entry["task"]), Outcome(entry["outcome"])
        if outcome is Outcome.SENT:
            known.messages.add((task, str(entry["digest"])))
            # A task whose update was accepted before keeps that, whatever is sent for it again.
            known.outcomes[task] = max(known.outcomes.get(task, outcome), outcome, key=_CERTAINTY.index)
        else:
            known.outcomes[task] = outcome
    elif "promise" in entry:
        known.promise = entry["promise"]
    else:
        known.ledger = LedgerHead(entry["ledger_head"], int(entry["ledger_length"]))


_CERTAINTY: Final = (Outcome.REFUSED, Outcome.SENT, Outcome.ACCEPTED)


def _read(path: Path) -> list[Mapping[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        # What a crash cut off was not yet on the disk when it struck, so what it was to announce had not left.
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        try:
            entries = [json.loads(line) for line in whole.split(b"\n") if line]
            for entry in entries:
                _apply(Participations(), entry)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(
                f"{path} is damaged ({error}): it holds what this client has spent of its privacy and must not be "
                "begun anew; restore it from a copy, or enrol as a new client"
            ) from None
        return entries
    return []


def _append_line(path: Path, line: str) -> None:
    is_new = not path.parent.exists()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o600), "r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    if is_new:
        sync_folder(path.parent.parent)


def outcome_of(error: ServerError) -> Outcome:
    """Tells what became of an update that the server refused; what failed on its side may have been counted."""
    if isinstance(error, AlreadySubmittedError):
        return Outcome.ACCEPTED
    return Outcome.REFUSED if error.status < _FIRST_SERVER_FAULT and not error.retryable else Outcome.SENT
