"""Named points at which a test may kill, delay or fail a server process; they do nothing unless armed at start-up.

A crash suite arms one with `FEDQUORUM_FAILPOINT=name:nth:action`, where action is `kill` (SIGKILL to this process)
or `error` (raises, as a full disk would). Only the composition root arms; `reach` costs a dictionary look-up.
"""

import os
import signal
from dataclasses import dataclass
from typing import Final, Literal

NAMES: Final = (
    "blobs.begun",
    "blobs.bytes_written",
    "blobs.bytes_removed",
    "retention.in_transaction",
    "retention.after_commit",
    "intake.chunks_stored",
    "intake.received",
    "intake.before_commit",
    "intake.after_commit",
    "uploads.chunks_stored",
    "uploads.checkpointed",
    "uploads.completing",
    "uploads.taken",
    "eager.folding",
    "eager.folded",
    "aggregation.started",
    "aggregation.halfway",
    "aggregation.model_written",
    "publication.in_transaction",
    "publication.after_commit",
    "evaluation.in_transaction",
    "evaluation.after_commit",
    "rollback.in_transaction",
    "rollback.after_commit",
    "session.seat_taken",
    "session.forming",
    "session.message_taken",
    "session.input_stored",
    "session.entering",
    "session.sum_started",
    "session.sum_halfway",
    "session.sum_written",
    "session.settling",
    "session.settled",
    "session.aborting",
    "helper.contribution_stored",
    "helper.contribution_taken",
    "helper.asking",
    "helper.verdict_taken",
    "helper.answer_stored",
    "helper.answer_taken",
    "helper.sum_started",
    "helper.sum_halfway",
    "helper.sum_written",
    "helper.settling",
    "helper.settled",
    "helper.failing",
)


@dataclass(slots=True)
class _Armed:
    remaining: int
    action: Literal["kill", "error"]


_armed: dict[str, _Armed] = {}


class FailpointError(OSError):
    """What a failpoint armed with `error` raises."""


def arm(description: str) -> None:
    """Arms one failpoint from `name:nth:action`; raises ValueError naming what is wrong."""
    name, _, rest = description.partition(":")
    nth, _, action = rest.partition(":")
    if name not in NAMES:
        raise ValueError(f"unknown failpoint {name!r}; known: {', '.join(NAMES)}")
    if not nth.isdigit() or int(nth) < 1 or action not in ("kill", "error"):
        raise ValueError(f"a failpoint is armed as name:nth:kill or name:nth:error, got {description!r}")
    _armed[name] = _Armed(remaining=int(nth), action="kill" if action == "kill" else "error")


def reach(name: str) -> None:
    """Marks that the process passed a named point, and carries out what was armed there."""
    armed = _armed.get(name)
    if armed is None:
        return
    armed.remaining -= 1
    if armed.remaining:
        return
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise FailpointError(f"failpoint {name} was armed with an error")
