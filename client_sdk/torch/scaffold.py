"""SCAFFOLD's local steps in PyTorch (Karimireddy et al. 2020, arXiv 1910.06378, option II), and their number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn

from client_sdk.errors import UsageError
from client_sdk.session.work import TrainingTask
from fl_protocol.arrays import RawTensor, Tensor
from fl_protocol.specs.algorithms import Algorithm, FedAvgAlgorithm

_NEEDS_PLAIN_SGD: Final = "its formulas are those of plain SGD: give TorchTrainer an optimizer without momentum"


@dataclass(frozen=True, slots=True)
class _Drift:
    """A trained parameter with where it started, the client's control variate of it, and c - c_i."""

    parameter: nn.Parameter
    origin: torch.Tensor
    control: torch.Tensor
    offset: torch.Tensor


class LocalSteps:
    """Counts a task's local steps, and adds c - c_i to the gradients of each where the task has control variates.

    Raises UsageError for an optimizer whose steps the task's algorithm has no formula for.
    """

    def __init__(self, module: nn.Module, task: TrainingTask, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(task.algorithm, FedAvgAlgorithm):
            _check_plain_sgd(optimizer, task.algorithm)
        self.count = 0
        self._learning_rate: Final = float(optimizer.param_groups[0]["lr"])
        self._kept: Final = task.control
        self._drifts: Final[dict[str, _Drift]] = {}
        if task.control is not None and task.server_control is not None:
            for name, parameter in module.named_parameters(remove_duplicate=False):
                if parameter.requires_grad and name in task.control:
                    control = _like(task.control[name], parameter)
                    offset = _like(task.server_control[name], parameter) - control
                    drift = _Drift(parameter, parameter.detach().clone(), control, offset.to(parameter.dtype))
                    self._drifts[name] = drift

    def correct(self) -> None:
        """Counts a step that is about to be taken, and corrects its gradients; one that is missing counts as zero."""
        self.count += 1
        tied = set()
        with torch.no_grad():
            for drift in self._drifts.values():
                if id(drift.parameter) in tied:
                    continue
                tied.add(id(drift.parameter))
                if drift.parameter.grad is None:
                    drift.parameter.grad = drift.offset.clone()
                else:
                    drift.parameter.grad.add_(drift.offset)

    def control(self) -> Mapping[str, Tensor] | None:
        """Gives c_i - c + (x - y_i) / (K * learning_rate) for what was trained, c_i for the rest; None without them."""
        if self._kept is None or self.count == 0:
            return self._kept
        scale = self.count * self._learning_rate
        following = dict(self._kept)
        for name, drift in self._drifts.items():
            moved = (drift.origin.double() - drift.parameter.detach().double()) / scale
            # The steps were corrected by the offset as the parameter's own type holds it.
            values = (moved - drift.offset.double()).to(drift.control.dtype)
            following[name] = values.cpu().contiguous().numpy()
        return following


def _check_plain_sgd(optimizer: torch.optim.Optimizer, algorithm: Algorithm) -> None:
    plain = isinstance(optimizer, torch.optim.SGD)
    if not plain or any(group["momentum"] or group.get("maximize") for group in optimizer.param_groups):
        raise UsageError(f"the run's algorithm is {algorithm.kind}; {_NEEDS_PLAIN_SGD}")


def _like(tensor: Tensor, parameter: nn.Parameter) -> torch.Tensor:
    if isinstance(tensor, RawTensor):
        raise UsageError("a control variate is float32 or float64")
    return torch.from_numpy(np.array(tensor)).to(parameter.device)
