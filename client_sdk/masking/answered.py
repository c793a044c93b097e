"""The rounds whose sums this client has helped to unmask: noted on the disk before the answer leaves (rules C7, C8).

A round is spent then, whatever becomes of its session and however often it is attempted: two sums with the same
client's update in them, over different sets, would tell them apart.
"""

from pathlib import Path
from typing import Final

from client_sdk.errors import UsageError
from client_sdk.masking.files import read_object, write_object
from fl_protocol.identifiers import is_identifier


class AnsweredRounds:
    """One client's answered rounds of a run, in `state_dir`/RUN_ID/answered, a file each."""

    def __init__(self, state_dir: Path, run_id: str) -> None:
        if not is_identifier(run_id):
            raise UsageError(f"{run_id[:64]!r} is not a run's id; nothing can be kept for it in {state_dir}")
        self._folder: Final = Path(state_dir) / run_id / "answered"

    def session_of(self, round_number: int) -> str | None:
        """Names the session in which this client answered for a round, None if it has not."""
        entry = read_object(self._path(round_number))
        return None if entry is None else str(entry.get("session_id"))

    def note(self, round_number: int, *, attempt: int, session_id: str, session_hash: bytes, survivors: bytes) -> None:
        """Notes, durably, that this client answers; raises UsageError if it has answered for the round before."""
        if self.session_of(round_number) is not None:
            raise UsageError(f"this client has answered in round {round_number} already, and answers once")
        entry = {"attempt": attempt, "session_id": session_id}
        write_object(
            self._path(round_number), entry | {"session_hash": session_hash.hex(), "survivors": survivors.hex()}
        )

    def _path(self, round_number: int) -> Path:
        return self._folder / f"{round_number:010}.json"
