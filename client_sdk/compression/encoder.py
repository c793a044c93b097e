"""Encodes a delta as a run's encoding has it, and says what of it does not leave."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

import numpy as np
from numpy.typing import NDArray

from client_sdk.compression.quantising import quantise
from client_sdk.errors import TrainerError, UsageError
from fl_protocol.arrays import RawTensor, Tensor, dtype_of
from fl_protocol.dtypes import CARRIERS, Float64Array, as_float64, from_float64, is_finite
from fl_protocol.encodings.forms import INDICES_PREFIX, SCALES_PREFIX, Dense, Quantised, Sparse, form_of
from fl_protocol.encodings.quantised import pack_int4
from fl_protocol.encodings.random_mask import SEED_BYTES, SEED_KEY, mask_indices
from fl_protocol.specs.encodings import DenseEncoding, Encoding, RandomMaskEncoding, SparseEncoding
from fl_protocol.tensors import TensorSpec

Entropy = Callable[[int], bytes]
"""Gives so many random bytes."""

Left = dict[str, NDArray[Any]]
"""What an update did not send, by tensor, in float32, or float64 where the tensor is."""

_LARGEST_FLOAT32: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class EncodedDelta:
    """The tensors and the metadata of an encoded update; `left` is what error feedback keeps for the next one."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    left: Left = field(default_factory=dict)


def encode_delta(
    delta: Mapping[str, Tensor], encoding: Encoding, *, saturates: bool = False, entropy: Entropy = os.urandom
) -> EncodedDelta:
    """Encodes finite tensors; integers and control variates stay as they are.

    `entropy` decides how codes are rounded and which elements a random mask sends. What is too large for the encoding's
    type becomes the largest that it has where the update `saturates`, and else raises TrainerError naming the tensor.
    """
    if encoding == DenseEncoding(compression=encoding.compression):
        return EncodedDelta(delta, {})
    encoder = _Encoder(encoding, saturates=saturates, entropy=entropy)
    for name, tensor in delta.items():
        encoder.add(name, tensor)
    return encoder.result()


class _Encoder:
    def __init__(self, encoding: Encoding, *, saturates: bool, entropy: Entropy) -> None:
        self._encoding = encoding
        self._saturates = saturates
        self._random = np.random.default_rng(int.from_bytes(entropy(16)))
        self._seed = entropy(SEED_BYTES) if isinstance(encoding, RandomMaskEncoding) else b""
        self._keeps = isinstance(encoding, SparseEncoding) and encoding.error_feedback
        self._tensors: dict[str, Tensor] = {}
        self._left: Left = {}

    def add(self, name: str, tensor: Tensor) -> None:
        dtype = dtype_of(tensor)
        form = form_of(TensorSpec(name, dtype, tensor.shape, 0, 0), self._encoding)
        match form:
            case Dense():
                self._tensors[name] = tensor if form.dtype == dtype else self._narrowed(name, tensor, form.dtype)
            case Quantised():
                self._add_codes(name, tensor, form)
            case Sparse():
                self._add_elements(name, self._bounded(name, tensor, "F32"), form, dtype=dtype)
            case _:
                assert_never(form)

    def result(self) -> EncodedDelta:
        # The widest types first, as the safetensors library writes them: every tensor is aligned, scales before codes.
        ordered = sorted(self._tensors.items(), key=lambda item: -CARRIERS[dtype_of(item[1])].itemsize)
        metadata = {SEED_KEY: self._seed.hex()} if self._seed else {}
        return EncodedDelta(dict(ordered), metadata, self._left)

    def _add_codes(self, name: str, tensor: Tensor, form: Quantised) -> None:
        codes, scales = quantise(self._bounded(name, tensor, "F32"), form, random=self._random)
        self._tensors[SCALES_PREFIX + name] = scales
        self._tensors[name] = codes.reshape(tensor.shape) if form.bits == 8 else pack_int4(codes)

    def _add_elements(self, name: str, values: Float64Array, form: Sparse, *, dtype: str) -> None:
        flat = values.reshape(-1)
        chosen = _largest(flat, form.count) if form.has_indices else self._drawn(name, form)
        sent = flat[chosen].astype(np.float32)
        if form.has_indices:
            self._tensors[INDICES_PREFIX + name] = chosen.astype(np.uint32)
        self._tensors[name] = sent
        if self._keeps:
            flat[chosen] -= sent
            self._left[name] = values.astype(np.float64 if dtype == "F64" else np.float32)

    def _drawn(self, name: str, form: Sparse) -> NDArray[np.int64]:
        try:
            return mask_indices(
                self._seed, name, num_elements=form.num_elements, count=form.count, first=0, last=form.count
            )
        except ModuleNotFoundError as error:
            raise UsageError(f"encoding.kind 'random_mask' needs {error.name}: install fedquorum[privacy]") from None

    def _narrowed(self, name: str, tensor: Tensor, dtype: str) -> Tensor:
        narrowed = from_float64(self._bounded(name, tensor, dtype), dtype)
        return RawTensor("BF16", narrowed) if dtype == "BF16" else narrowed

    def _bounded(self, name: str, tensor: Tensor, dtype: str) -> Float64Array:
        """Widens a tensor to float64, no element larger than a type holds."""
        values = as_float64(tensor.data if isinstance(tensor, RawTensor) else tensor, dtype_of(tensor))
        if is_finite(np.ascontiguousarray(from_float64(values, dtype)), dtype):
            return values
        if not self._saturates:
            raise TrainerError(
                f"tensor {name!r} moved by {np.abs(values).max():g}, more than {dtype} holds, in which encoding.kind "
                f"{self._encoding.kind!r} sends it; lower the learning rate"
            )
        largest = _LARGEST_OF[dtype]
        return np.clip(values, -largest, largest)


_LARGEST_OF: Final = {
    "F64": float(np.finfo(np.float64).max),
    "F32": _LARGEST_FLOAT32,
    "F16": float(np.finfo(np.float16).max),
    "BF16": float.fromhex("0x1.fep127"),
}


def _largest(flat: Float64Array, count: int) -> NDArray[np.int64]:
    """Gives the indices of the elements that are largest in magnitude, in their order."""
    if count >= flat.size:
        return np.arange(flat.size)
    return np.sort(np.argpartition(np.abs(flat), flat.size - count)[flat.size - count :])
