"""What is done to a step's gradient, and when local training ends."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from client_sdk.session.work import TrainingTask
from fl_protocol.specs.training import EarlyStop, TrainingSpec


@dataclass(frozen=True, slots=True)
class Gradient:
    """Changes the gradients of a task's trained parameters between `backward` and the optimizer's step."""

    parameters: Sequence[nn.Parameter]
    anchor: "Anchor"
    max_norm: float | None

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter], training: TrainingSpec) -> "Gradient":
        """Prepares for training from the parameters' present values."""
        return cls(parameters, Anchor.of(parameters, training.proximal_mu), training.max_gradient_norm)

    def change(self) -> None:
        """Adds the proximal term, then scales the whole gradient down to the largest norm that is allowed."""
        self.anchor.pull()
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_norm)


@dataclass(frozen=True, slots=True)
class Anchor:
    """FedProx's proximal term, mu / 2 x |w - w_global|^2, as the gradient that it adds (Li et al. 2020)."""

    pairs: tuple[tuple[nn.Parameter, torch.Tensor], ...]
    proximal_mu: float

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter], proximal_mu: float) -> "Anchor":
        """Anchors parameters where they are now."""
        if proximal_mu == 0:
            return cls((), 0.0)
        return cls(tuple((parameter, parameter.detach().clone()) for parameter in parameters), proximal_mu)

    def pull(self) -> None:
        """Adds mu x (w - w_global) to the gradients."""
        with torch.no_grad():
            for parameter, origin in self.pairs:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - origin, alpha=self.proximal_mu)


@dataclass(slots=True)
class Budget:
    """Counts a task's local steps and time: so many steps or so many epochs, and no step begun after so many seconds.

    There is at least one step, whatever the time.
    """

    num_steps: int | None
    num_epochs: int
    seconds: float
    clock: Callable[[], float]
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.clock()

    @classmethod
    def of(cls, task: TrainingTask, *, clock: Callable[[], float] = time.monotonic) -> "Budget":
        """Starts the clock of a task."""
        training = task.training
        seconds = math.inf if training.max_seconds is None else training.max_seconds
        return cls(training.local_steps, task.local_epochs, seconds, clock)

    def epochs(self) -> Iterable[int]:
        """Numbers the passes over the data, without an end where steps are counted."""
        return range(self.num_epochs) if self.num_steps is None else itertools.count()

    def is_spent(self, num_steps: int) -> bool:
        """Tells after a step, given how many there have been, whether it was the last one."""
        return num_steps == self.num_steps or self.clock() - self.begun >= self.seconds


@dataclass(slots=True)
class Patience:
    """Counts the epochs since the training loss last fell by enough."""

    rule: EarlyStop | None
    best: float = field(default=math.inf)
    num_waited: int = 0

    def is_over(self, loss: float) -> bool:
        """Takes an epoch's mean loss and tells whether to stop; a loss that is NaN never counts as lower."""
        if self.rule is None:
            return False
        if loss < self.best - self.rule.min_delta:
            self.best, self.num_waited = loss, 0
        else:
            self.num_waited += 1
        return self.num_waited >= self.rule.patience
