"""Which versions are left behind: those whose evaluation fell by more than a bound against the best one."""

from dataclasses import dataclass

from aggregator_service.domain.stopping import Mark, better, gain
from fl_protocol.specs.evaluation import QuarantineSpec


@dataclass(frozen=True, slots=True)
class Guard:
    """The best evaluation so far, and the last version that was evaluated and kept."""

    best: Mark
    good_version: int


def condemns(guard: Guard | None, mark: Mark, *, quarantine: QuarantineSpec) -> bool:
    """Tells whether an evaluated version is to be left behind; the first evaluated one has nothing to fall from."""
    # Against the best, not the one before: else a decline in small steps would never be seen.
    return guard is not None and -gain(mark.value, guard.best.value, mode=quarantine.mode) > quarantine.max_fall


def kept(guard: Guard | None, mark: Mark, *, quarantine: QuarantineSpec) -> Guard:
    """Notes a version that was evaluated and kept."""
    best = None if guard is None else guard.best
    return Guard(better(best, mark, mode=quarantine.mode), mark.version)
