"""A module's parameters by what a run's `parameters` says of them: frozen ones, and those of normalisation layers."""

import contextlib
from collections.abc import Iterator
from typing import Final

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from client_sdk.errors import UsageError
from fl_protocol.specs.parameters import ParametersSpec

_NORMALISATION: Final = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def normalisation_patterns(module: nn.Module) -> list[str]:
    """Names the parameters and buffers of a module's batch, instance, layer, group and RMS normalisation layers.

    As `personal` in a run's `parameters` they make it FedBN (Li et al. 2021). Raises UsageError if there are none.
    """
    patterns = [
        f"{name}.*" if name else "*"
        for name, layer in module.named_modules()
        if isinstance(layer, _NORMALISATION) and layer.state_dict()
    ]
    if not patterns:
        raise UsageError(f"{type(module).__name__} has no normalisation layer with parameters or statistics")
    return patterns


@contextlib.contextmanager
def frozen(module: nn.Module, parameters: ParametersSpec) -> Iterator[None]:
    """Takes the gradient from parameters that are frozen, and gives it back at the end to those that had it.

    Raises UsageError naming two tensors that are one in the module and that `parameters` would treat differently.
    """
    _check_tied(module, parameters)
    held = [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameters.is_frozen(name)
    ]
    for parameter in held:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad = True


def _check_tied(module: nn.Module, parameters: ParametersSpec) -> None:
    first_name: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        twin = first_name.setdefault(id(parameter), name)
        if _treatment(parameters, name) != _treatment(parameters, twin):
            raise UsageError(
                f"tensors {twin!r} and {name!r} are one in the module; the run's parameters must treat them alike"
            )


def _treatment(parameters: ParametersSpec, name: str) -> tuple[bool, bool]:
    return parameters.travels(name), parameters.is_personal(name)
