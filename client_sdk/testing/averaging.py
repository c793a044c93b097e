"""The fake's arithmetic: weighted means in float64, rounded once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.compression.decoder import decode_delta
from fl_protocol.arrays import RawTensor, Tensor, decode, dtype_of, encode
from fl_protocol.dtypes import CARRIERS, FLOAT_FORMATS, as_float64, from_float64
from fl_protocol.encodings.forms import CONTROL_PREFIX
from fl_protocol.specs.encodings import Encoding
from fl_protocol.tensors import LENGTH_BYTES, Header, header_length, parse_header


def weighted_mean(base: bytes, updates: list[bytes], *, weights: list[int], scales: list[float] | None = None) -> bytes:
    """Adds the weighted mean of the updates to the base model, in float64, rounded once.

    `scales` are further factors of the floating-point deltas, as FedNova has them.
    """
    model = decode(base)
    told = list(zip([decode(update) for update in updates], weights, scales or [1.0] * len(updates), strict=True))
    return b"".join(encode({name: _moved(name, tensor, told=told) for name, tensor in model.items()}, {}))


def fednova_scales(weights: list[int], steps: list[int]) -> list[float]:
    """Gives tau_eff / tau_i for updates of so many local steps (Wang et al. 2020)."""
    effective = sum(weight * count for weight, count in zip(weights, steps, strict=True)) / sum(weights)
    return [effective / count for count in steps]


def next_control(control: bytes | None, updates: list[bytes], *, num_clients: int) -> bytes:
    """Gives SCAFFOLD's server control variate after a round; None stands for zeros."""
    before = {} if control is None else decode(control)
    deltas = [decode(update) for update in updates]
    following: dict[str, Tensor] = {}
    for name in (name for name in deltas[0] if name.startswith(CONTROL_PREFIX)):
        dtype = dtype_of(deltas[0][name])
        total = sum(_wide(delta[name], dtype) for delta in deltas) / num_clients
        following[name] = from_float64((_wide(before[name], dtype) if before else 0.0) + total, dtype)
    return b"".join(encode(following, {}))


def _moved(name: str, base: Tensor, *, told: list[tuple[dict[str, Tensor], int, float]]) -> Tensor:
    present = [(delta[name], weight, scale) for delta, weight, scale in told if name in delta]
    if not present:
        return base
    dtype = dtype_of(base)
    if dtype not in FLOAT_FORMATS:
        held = sum(weight for _, weight, _ in present)
        mean = sum(weight * _wide(delta, dtype) for delta, weight, _ in present) / held
        counters: NDArray[Any] = (_wide(base, dtype) + np.rint(mean)).astype(CARRIERS[dtype])
        return counters
    # A skipped update holds nothing and weighs all the same.
    total = sum(weight for _, weight, _ in told)
    step = sum(weight * scale * _wide(delta, dtype_of(delta)) for delta, weight, scale in present) / total
    values = from_float64(_wide(base, dtype) + step, dtype)
    return RawTensor("BF16", values) if dtype == "BF16" else values


def _wide(tensor: Tensor, dtype: str) -> Any:
    values = tensor.data if isinstance(tensor, RawTensor) else tensor
    return as_float64(values, dtype) if dtype in FLOAT_FORMATS else values.astype(np.float64)


def plain_update(update: bytes, *, base: bytes, encoding: Encoding) -> bytes:
    """Gives an update with its floating-point deltas in float64, whatever its encoding."""
    tensors = decode(update)
    delta = decode_delta(tensors, header_of(update).metadata, model=decode(base), encoding=encoding)
    return b"".join(encode(delta, {}))


def header_of(content: bytes) -> Header:
    """Reads the header of a safetensors file."""
    end = LENGTH_BYTES + header_length(content[:LENGTH_BYTES])
    return parse_header(content[LENGTH_BYTES:end])


def mean_metrics(reports: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Gives the mean of each metric over (weight, metrics) of those who reported it."""
    names = {name for _, metrics in reports for name in metrics}
    means: dict[str, float] = {}
    for name in sorted(names):
        given = [(weight, metrics[name]) for weight, metrics in reports if name in metrics]
        means[name] = sum(weight * value for weight, value in given) / sum(weight for weight, _ in given)
    return means
