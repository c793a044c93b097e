"""The tasks that this process has handed out lately, and to whom: a short update that answers one needs no look-up.

What is known here may be out of date. It says what an update may hold and who sends it, so that it can be received and
checked; whether the token still is in force and the update still is wanted, the transaction judges that counts it. Each
task is known for one answer: whoever is refused is looked up the next time.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from aggregator_service.storage.asks import AskRecord

_MOST: Final = 4096


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A task as its client got it, and the hash of the token with which it asked."""

    token_hash: str
    record: AskRecord


class HandedOutTasks:
    """The newest 4096 of them that no update has come for; 2 KB each."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, HandedOut] = OrderedDict()

    def note(self, handed_out: HandedOut) -> None:
        """Keeps a task in mind, in place of what was known of it."""
        task_id = handed_out.record.task.task_id
        self._known[task_id] = handed_out
        self._known.move_to_end(task_id)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def take(self, task_id: str, *, token_hash: str) -> AskRecord | None:
        """Gives a task that was handed out for this token, and forgets it."""
        handed_out = self._known.get(task_id)
        if handed_out is None or handed_out.token_hash != token_hash:
            return None
        del self._known[task_id]
        return handed_out.record
