"""What a client adds to a session's sum, before it is masked: measured and weighed, in windows."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fl_protocol.arrays import RawTensor, Tensor, dtype_of
from fl_protocol.dtypes import Float64Array, as_float64
from fl_protocol.privacy.shared_noise import SharedNoise

WINDOW_ELEMENTS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class MaskedUpdate:
    """What one client adds to a session's sum: tensors in the manifest's order, before masks.

    Each element is multiplied by `factor`, which clips, and by `weight`; `extras` are the vector's last coordinates.
    `norm` is what the update measured before, infinite if it was not finite and became zero. `noise` is this client's
    share of it, where the clients add it.
    """

    tensors: Sequence[Tensor]
    factor: float
    weight: int
    extras: Mapping[str, float]
    norm: float = 0.0
    personal: Mapping[str, Tensor] = field(default_factory=dict)
    noise: SharedNoise | None = None


def euclidean_norm(tensors: Iterable[Tensor]) -> float:
    """Gives the L2 norm of an update as one vector, infinite if anything in it is NaN or infinite."""
    tensors = list(tensors)
    peak = 0.0
    for window in windows(tensors):
        # A NaN is neither more nor less than the largest, so that it is looked for by itself.
        largest = float(np.abs(window).max(initial=0.0))
        if not math.isfinite(largest):
            return math.inf
        peak = max(peak, largest)
    if peak == 0:
        return 0.0
    # Relative to the largest element nothing overflows or vanishes, however large or small the update is.
    squares = math.fsum(float(np.square(window / peak).sum()) for window in windows(tensors))
    return min(peak * math.sqrt(squares), float(np.finfo(np.float64).max))


def clipping_factor(norm: float, *, clipping_norm: float) -> float:
    """Gives what an update of such a norm is multiplied by so that it is at most `clipping_norm` long."""
    return 1.0 if norm <= clipping_norm else clipping_norm / norm


def windows(tensors: Iterable[Tensor]) -> Iterator[Float64Array]:
    """Yields tensors' elements one behind the other as float64, in windows of one length (the last one is shorter).

    A window is the caller's to change until it asks for the next one.
    """
    window = np.empty(WINDOW_ELEMENTS, dtype=np.float64)
    filled = 0
    for tensor in tensors:
        dtype, values = dtype_of(tensor), _flat(tensor)
        at = 0
        while at < values.size:
            taken = min(WINDOW_ELEMENTS - filled, values.size - at)
            window[filled : filled + taken] = as_float64(values[at : at + taken], dtype)
            filled += taken
            at += taken
            if filled == WINDOW_ELEMENTS:
                yield window
                filled = 0
    if filled:
        yield window[:filled]


def _flat(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.data if isinstance(tensor, RawTensor) else tensor).reshape(-1)
