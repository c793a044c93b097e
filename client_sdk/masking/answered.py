"""The rounds whose sums this client has helped to unmask: noted on the disk before the answer leaves (rules C7, C8).

A round is spent then, whatever becomes of its session and however often it is attempted from the same model: two sums
with the same client's update in them, over different sets, would tell the members apart.
"""

from pathlib import Path
from typing import Final

from client_sdk.errors import UsageError
from client_sdk.masking.files import read_object, write_object
from fl_protocol.identifiers import is_identifier
from fl_protocol.tasks import Task


class AnsweredRounds:
    """One client's answered rounds of a run, in `state_dir`/RUN_ID/answered, a file each."""

    def __init__(self, state_dir: Path, run_id: str) -> None:
        if not is_identifier(run_id):
            raise UsageError(f"{run_id[:64]!r} is not a run's id; nothing can be kept for it in {state_dir}")
        self._folder: Final = Path(state_dir) / run_id / "answered"

    def is_spent(self, task: Task) -> bool:
        """Tells whether this client has answered for the task's round and model."""
        return read_object(self._path(task)) is not None

    def note(self, task: Task, *, session_id: str, session_hash: bytes, survivors: bytes) -> None:
        """Notes, durably, that this client answers; raises UsageError if it has answered for the round before."""
        if self.is_spent(task):
            raise UsageError(f"this client has answered in round {task.round} already, and answers once")
        answered = {
            "round": task.round,
            "attempt": task.attempt,
            "model_digest": task.model_digest,
            "session_id": session_id,
            "session_hash": session_hash.hex(),
            "survivors": survivors.hex(),
        }
        write_object(self._path(task), answered)

    def _path(self, task: Task) -> Path:
        # A rollback begins a round anew from another model, whose updates are others.
        return self._folder / f"{task.round:010}-{task.model_digest.rpartition(':')[2]}.json"
