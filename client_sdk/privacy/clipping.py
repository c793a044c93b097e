"""Clips an update as one vector, in float64: what it may move the sum by is bounded before anything else is done to it.

NaN and infinity make the whole update zero. To refuse it, or to stay away, would tell everyone what the client's data
did to its training.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fl_protocol.arrays import RawTensor, Tensor, dtype_of
from fl_protocol.dtypes import Float64Array, as_float64, from_float64, is_finite

_LARGEST: Final = float(np.finfo(np.float64).max)
_LARGEST_OF: Final = {
    "F64": _LARGEST,
    "F32": float(np.finfo(np.float32).max),
    "F16": float(np.finfo(np.float16).max),
    "BF16": float.fromhex("0x1.fep127"),
}


class Norm(IntEnum):
    """The norm in which an update is clipped."""

    L1 = 1
    L2 = 2


@dataclass(frozen=True, slots=True)
class Clipped:
    """A clipped update in float64 by tensor name, and the norm that it had, infinite if it held NaN or infinity."""

    values: Mapping[str, Float64Array]
    norm: float


def clip(delta: Mapping[str, Tensor], *, clipping_norm: float, norm: Norm) -> Clipped:
    """Scales floating-point tensors down together so that their norm is at most `clipping_norm` x (1 + 2^-45)."""
    values = {name: _wide(tensor) for name, tensor in delta.items()}
    peak = max((float(np.abs(each).max(initial=0.0)) for each in values.values()), default=0.0)
    if not math.isfinite(peak):
        return Clipped({name: np.zeros_like(each) for name, each in values.items()}, math.inf)
    if peak == 0:
        return Clipped(values, 0.0)
    # Relative to the largest element nothing overflows or vanishes, however large or small the update is.
    unit = {name: each / peak for name, each in values.items()}
    relative = _norm(unit.values(), norm)
    if peak <= clipping_norm / relative:
        return Clipped(values, peak * relative)
    factor = clipping_norm / relative
    return Clipped({name: each * factor for name, each in unit.items()}, min(peak * relative, _LARGEST))


def clipped_tensors(delta: Mapping[str, Tensor], *, clipping_norm: float) -> tuple[dict[str, Tensor], float]:
    """Clips an update in the L2 norm, rounds it to its own types, and gives it with the norm that it had."""
    clipped = clip(delta, clipping_norm=clipping_norm, norm=Norm.L2)
    if clipped.norm <= clipping_norm:
        return dict(delta), clipped.norm
    return {name: like(delta[name], values) for name, values in clipped.values.items()}, clipped.norm


def finite_or_zero(delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives an update as it is, or zeros if it holds NaN or infinity."""
    if all(is_finite(_contiguous(tensor), dtype_of(tensor)) for tensor in delta.values()):
        return dict(delta)
    return {name: like(tensor, np.zeros(tensor.shape)) for name, tensor in delta.items()}


def like(tensor: Tensor, values: Float64Array) -> Tensor:
    """Rounds float64 values to a tensor's own type, what is too large for it to its largest finite value."""
    dtype = dtype_of(tensor)
    narrowed = from_float64(np.clip(values, -_LARGEST_OF[dtype], _LARGEST_OF[dtype]), dtype)
    return RawTensor("BF16", narrowed) if dtype == "BF16" else narrowed


def _contiguous(tensor: Tensor) -> NDArray[Any]:
    values = np.ascontiguousarray(tensor.data if isinstance(tensor, RawTensor) else tensor)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _wide(tensor: Tensor) -> Float64Array:
    return as_float64(tensor.data if isinstance(tensor, RawTensor) else tensor, dtype_of(tensor))


def _norm(values: Iterable[Float64Array], norm: Norm) -> float:
    # numpy adds pairwise, so that the sum is right to a few units in the last place for any number of elements.
    if norm is Norm.L1:
        return math.fsum(float(np.abs(each).ravel().sum()) for each in values)
    return math.sqrt(math.fsum(float(np.square(each).ravel().sum()) for each in values))
