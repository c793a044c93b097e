"""What a trainer is given and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fl_protocol.arrays import Tensor
from fl_protocol.specs.algorithms import Algorithm, FedAvgAlgorithm
from fl_protocol.specs.parameters import ParametersSpec
from fl_protocol.specs.privacy import Privacy
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.training import TrainingSpec, local_epochs, local_learning_rate
from fl_protocol.tasks import EvaluationReport


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTask:
    """What one client is asked to do in one round: the round's global model by tensor name, and the run's settings.

    The arrays are read-only; a bfloat16 tensor is a RawTensor, because numpy has no such type. Where `parameters` makes
    tensors personal, `model` holds this client's own values of them, and those of the global model before its first
    accepted update. For SCAFFOLD `control` (c_i) and `server_control` (c) hold an array for each floating-point tensor
    that travels: each local step is along gradient - control + server_control. `privacy` has the run's noise multiplier
    even where the server calibrated it; the SDK clips and noises, and only `example_dpsgd` is the trainer's to do, over
    at most `max_participations` of the run's `num_rounds` rounds (both 0 where nothing depends on them).
    """

    run_id: str
    round: int
    attempt: int
    base_version: int
    model: Mapping[str, Tensor]
    training: TrainingSpec
    parameters: ParametersSpec = field(default_factory=ParametersSpec)
    algorithm: Algorithm = field(default_factory=FedAvgAlgorithm)
    control: Mapping[str, Tensor] | None = None
    server_control: Mapping[str, Tensor] | None = None
    privacy: Privacy = field(default_factory=NoPrivacy)
    num_rounds: int = 0
    max_participations: int = 0

    @property
    def learning_rate(self) -> float:
        """The local learning rate of this round, by the run's schedule."""
        return local_learning_rate(self.training, self.round)

    @property
    def local_epochs(self) -> int:
        """The number of local epochs of this round, unless `training.local_steps` says how long it is."""
        return local_epochs(self.training, self.round)


@dataclass(frozen=True, slots=True)
class ExamplePrivacy:
    """What a trainer's DP-SGD has spent of each example's privacy in the run, this update included."""

    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A model after local training; the SDK takes the difference to the round's global model.

    Frozen tensors may be left out; what was done to them is not looked at. Personal ones are kept for the next round.
    FedNova and SCAFFOLD need `local_steps`. SCAFFOLD's next `control` (c_i+) is computed from them by option II unless
    it is given, as for tensors without a gradient, which keep the one they had. `example_dpsgd` needs `spent`.
    """

    tensors: Mapping[str, Tensor]
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    local_steps: int | None = None
    control: Mapping[str, Tensor] | None = None
    spent: ExamplePrivacy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedDelta:
    """Local minus global model, for a trainer that computed the difference itself: exactly the tensors that travel.

    `local_steps`, `control` and `spent` are TrainedModel's.
    """

    tensors: Mapping[str, Tensor]
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    local_steps: int | None = None
    control: Mapping[str, Tensor] | None = None
    spent: ExamplePrivacy | None = None


TrainingResult = TrainedModel | TrainedDelta
"""`num_examples` is the update's weight in the mean; `metrics` are finite numbers by name."""

Trainer = Callable[[TrainingTask], TrainingResult]
"""A trainer is called in a worker thread, once a task. If it has an attribute `structure` (tensor name -> type and
shape, as `structure_of` gives it), a model of another structure is refused before its bytes are read."""

Evaluator = Callable[[TrainingTask], EvaluationReport]
"""An evaluator measures the task's model on local data; it is called in a worker thread."""
