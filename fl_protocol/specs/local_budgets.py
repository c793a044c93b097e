"""How much a client trains in a round where epochs do not say it: a number of steps, a time, or both."""

from typing import Protocol

from fl_protocol.specs.privacy import ExampleDpsgdPrivacy, Privacy
from fl_protocol.specs.rounds import AnyRoundSpec
from fl_protocol.specs.training import TrainingSpec


class Choices(Protocol):
    """What a RunSpec has that local budgets must go with."""

    @property
    def training(self) -> TrainingSpec: ...

    @property
    def round(self) -> AnyRoundSpec: ...

    @property
    def privacy(self) -> Privacy: ...


def check_budgets(spec: Choices) -> None:
    """Raises ValueError naming the field that a budget of steps or of time does not go with."""
    training = spec.training
    if training.local_steps is not None:
        _check_steps(training)
    if training.max_seconds is not None and training.max_seconds >= spec.round.deadline_seconds:
        raise ValueError(
            f"training.max_seconds {training.max_seconds:g} must be below round.deadline_seconds "
            f"{spec.round.deadline_seconds:g}, which a client has for download and upload, too"
        )
    given = [name for name in ("local_steps", "max_seconds") if getattr(training, name) is not None]
    if given and isinstance(spec.privacy, ExampleDpsgdPrivacy):
        raise ValueError(
            f"training.{given[0]} does not go with privacy.kind 'example_dpsgd', whose noise is calibrated to whole "
            "epochs; take training.local_epochs"
        )


def _check_steps(training: TrainingSpec) -> None:
    others = {
        "local_epochs": training.local_epochs != 1,
        "local_epochs_by_round": bool(training.local_epochs_by_round),
        "early_stop": training.early_stop is not None,
    }
    other = next((name for name, is_set in others.items() if is_set), None)
    if other is not None:
        raise ValueError(
            f"training.{other} counts epochs and training.local_steps {training.local_steps} steps: only one of them "
            "can say when a client's round is over"
        )
