"""A module's state as tensors by name, and back: checked whole before the first value is copied."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from client_sdk.errors import UntrustedAnswerError, UsageError
from client_sdk.session.deltas import Structure, first_difference, first_non_finite, structure_of
from fl_protocol.arrays import RawTensor, Tensor

_DTYPES: Final[Mapping[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def module_structure(module: nn.Module) -> Structure:
    """Describes a module's state; raises UsageError naming an entry that cannot travel."""
    return {name: (_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in _state(module).items()}


def tensors_of(module: nn.Module, *, where: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Copies a module's parameters and buffers into arrays by name, tied ones under each of their names.

    With `where` only those whose name it accepts. Raises UsageError naming an entry that is no dense tensor of a type
    that can travel.
    """
    return {name: _to_array(tensor) for name, tensor in _state(module).items() if where is None or where(name)}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors into a module, all of them or none.

    Raises UntrustedAnswerError naming the tensor, with the module unchanged, unless names, shapes and types are exactly
    the module's, every value is finite and the values of tied tensors agree.
    """
    state = _state(module)
    difference = first_difference(structure_of(tensors), module_structure(module))
    if difference is not None:
        raise UntrustedAnswerError(f"the model does not fit the module: {difference}")
    broken = first_non_finite(tensors)
    if broken is not None:
        raise UntrustedAnswerError(f"the model holds NaN or infinity in tensor {broken!r}")
    _check_tied(state, tensors)
    arrived = {name: _to_torch(tensor) for name, tensor in tensors.items()}
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(arrived[name])


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = module.state_dict()
    for name, entry in state.items():
        if not isinstance(entry, torch.Tensor):
            raise UsageError(f"{name!r} in the module's state is {type(entry).__name__}, which cannot travel")
        if entry.dtype not in _DTYPES or entry.layout is not torch.strided or entry.is_meta or entry.is_quantized:
            raise UsageError(f"tensor {name!r} of {entry.dtype} on {entry.device} cannot travel; dense numbers can")
    return state


def _check_tied(state: Mapping[str, torch.Tensor], tensors: Mapping[str, Tensor]) -> None:
    first_name: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:
            continue
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        twin = first_name.setdefault(place, name)
        if not np.array_equal(_bits(tensors[name]), _bits(tensors[twin])):
            raise UntrustedAnswerError(f"tensors {twin!r} and {name!r} are one in the module and differ in the model")


def _bits(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.data if isinstance(tensor, RawTensor) else tensor


def _to_array(tensor: torch.Tensor) -> Tensor:
    dense = tensor.detach().to("cpu", copy=True).contiguous()
    if dense.dtype is torch.bfloat16:
        return RawTensor("BF16", dense.view(torch.int16).numpy().view(np.uint16))
    return dense.numpy()


def _to_torch(tensor: Tensor) -> torch.Tensor:
    if isinstance(tensor, RawTensor):
        return torch.from_numpy(np.array(tensor.data).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(tensor))
