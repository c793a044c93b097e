"""Reads encoded updates as docs/encodings.md says, with no code of the product: numpy, json and AES alone."""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Shapes = Mapping[str, tuple[int, ...]]

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I8": "i1", "U8": "u1", "U32": "<u4", "BF16": "<u2"}


def tensors_of(body: bytes) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Reads a safetensors file; BF16 becomes float32."""
    (length,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = np.frombuffer(body[begin:end], dtype=_TYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        tensors[name] = values
    return tensors, metadata


def decoded(body: bytes, shapes: Shapes, encoding: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Gives an update's floating-point deltas in float64."""
    tensors, metadata = tensors_of(body)
    return {name: _decoded(name, shape, tensors, metadata, encoding) for name, shape in shapes.items()}


def _decoded(
    name: str,
    shape: tuple[int, ...],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    metadata: Mapping[str, str],
    encoding: Mapping[str, Any],
) -> np.ndarray[Any, Any]:
    size, sent = int(np.prod(shape)), tensors[name].astype(np.float64).reshape(-1)
    if encoding["kind"] == "dense":
        return sent.reshape(shape)
    if encoding["kind"] in ("int8", "int4"):
        codes = sent if encoding["kind"] == "int8" else _nibbles(tensors[name])[:size]
        scales = tensors[f"scales:{name}"].astype(np.float64)
        return (codes.reshape(len(scales), -1) * scales[:, None]).reshape(shape) if size else codes.reshape(shape)
    result = np.zeros(size)
    if encoding["kind"] == "topk":
        result[tensors[f"indices:{name}"]] = sent
    else:
        result[drawn(bytes.fromhex(metadata["mask_seed"]), name, size, len(sent))] = sent
    return result.reshape(shape)


def _nibbles(packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    both = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).astype(np.float64)
    return np.where(both > 7, both - 16, both)


def drawn(seed: bytes, name: str, size: int, count: int) -> list[int]:
    """Gives the elements that a random mask sends."""
    key = hashlib.sha256(seed + name.encode()).digest()
    words = np.frombuffer(Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * count)), "<u4")
    bounds = [part * size // max(count, 1) for part in range(count + 1)]
    return [bounds[j] + (int(words[j]) * (bounds[j + 1] - bounds[j]) >> 32) for j in range(count)]
