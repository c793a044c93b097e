"""The fake's arithmetic: weighted means in float64, rounded once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.arrays import RawTensor, Tensor, decode, dtype_of, encode
from fl_protocol.dtypes import CARRIERS, FLOAT_FORMATS, as_float64, from_float64


def weighted_mean(base: bytes, updates: list[bytes], *, weights: list[int]) -> bytes:
    """Adds the weighted mean of the updates to the base model, in float64, rounded once."""
    model = decode(base)
    deltas = [decode(update) for update in updates]
    new = {name: _moved(name, tensor, deltas=deltas, weights=weights) for name, tensor in model.items()}
    return b"".join(encode(new, {}))


def _moved(name: str, base: Tensor, *, deltas: list[dict[str, Tensor]], weights: list[int]) -> Tensor:
    present = [(delta[name], weight) for delta, weight in zip(deltas, weights, strict=True) if name in delta]
    if not present:
        return base
    dtype = dtype_of(base)
    total = sum(weight for _, weight in present)
    mean = sum(weight * _wide(delta, dtype) for delta, weight in present) / total
    if dtype not in FLOAT_FORMATS:
        counters: NDArray[Any] = (_wide(base, dtype) + np.rint(mean)).astype(CARRIERS[dtype])
        return counters
    values = from_float64(_wide(base, dtype) + mean, dtype)
    return RawTensor("BF16", values) if dtype == "BF16" else values


def _wide(tensor: Tensor, dtype: str) -> Any:
    values = tensor.data if isinstance(tensor, RawTensor) else tensor
    return as_float64(values, dtype) if dtype in FLOAT_FORMATS else values.astype(np.float64)


def mean_metrics(reports: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Gives the mean of each metric over (weight, metrics) of those who reported it."""
    names = {name for _, metrics in reports for name in metrics}
    means: dict[str, float] = {}
    for name in sorted(names):
        given = [(weight, metrics[name]) for weight, metrics in reports if name in metrics]
        means[name] = sum(weight * value for weight, value in given) / sum(weight for weight, _ in given)
    return means
