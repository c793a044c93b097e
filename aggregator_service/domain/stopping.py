"""When a run has what it was after: its target is reached, or training stopped helping."""

from dataclasses import dataclass, replace

from fl_protocol.specs.evaluation import EarlyStoppingSpec, Mode, TargetSpec


@dataclass(frozen=True, slots=True)
class Mark:
    """A model version and what it reached of a metric."""

    version: int
    value: float


@dataclass(frozen=True, slots=True)
class Patience:
    """The last version that was better by more than `min_delta`, and how many evaluations came since."""

    mark: Mark
    num_stale: int


def gain(value: float, over: float, *, mode: Mode) -> float:
    """Gives by how much a value is better than another; below 0 it is worse."""
    return value - over if mode == "max" else over - value


def better(best: Mark | None, candidate: Mark, *, mode: Mode) -> Mark:
    """Gives the better mark; of equals the earlier."""
    return candidate if best is None or gain(candidate.value, best.value, mode=mode) > 0 else best


def is_reached(target: TargetSpec, value: float) -> bool:
    """Tells whether a value is at the target or beyond it."""
    return gain(value, target.value, mode=target.mode) >= 0


def waited(patience: Patience | None, mark: Mark, *, stopping: EarlyStoppingSpec) -> Patience:
    """Counts one evaluation more: it begins the count anew if it is better by more than `min_delta`."""
    if patience is None or gain(mark.value, patience.mark.value, mode=stopping.mode) > stopping.min_delta:
        return Patience(mark, 0)
    return in_vain(patience)


def in_vain(patience: Patience) -> Patience:
    """Counts one evaluation more that was no better, or of a version that was left behind."""
    return replace(patience, num_stale=patience.num_stale + 1)


def is_exhausted(patience: Patience, *, stopping: EarlyStoppingSpec) -> bool:
    """Tells whether training has stopped helping."""
    return patience.num_stale >= stopping.patience
