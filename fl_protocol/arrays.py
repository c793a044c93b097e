"""safetensors bytes <-> numpy arrays, for whoever holds a whole model: the client SDK and tests."""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fl_protocol.dtypes import CARRIERS
from fl_protocol.tensors import LENGTH_BYTES, TensorSpec, header_length, malformed, parse_header, render_header

PIECE_BYTES: Final = 1 << 20

_NUMPY_TYPES: Final[dict[np.dtype[Any], str]] = {
    np.dtype(np.bool_): "BOOL",
    **{carrier: dtype for dtype, carrier in CARRIERS.items() if dtype not in {"BF16", "BOOL"}},
}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor whose type numpy does not have: `data` holds its bits (BF16: uint16) in the tensor's shape."""

    dtype: str
    data: NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape


Tensor = NDArray[Any] | RawTensor


def encoded_size(arrays: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Gives the number of bytes that `encode` yields for the same arguments."""
    return len(_header_of(arrays, metadata)) + sum(_data_of(tensor).nbytes for tensor in arrays.values())


def encode(
    arrays: Mapping[str, Tensor], metadata: Mapping[str, str], *, begin: int = 0
) -> Iterator[bytes | memoryview]:
    """Yields a safetensors file in pieces of 1 MiB (the last one shorter), tensors in the order given.

    Pieces that lie within one tensor are views of it, without a copy where it is contiguous and little-endian.
    With `begin` it yields what follows the first so many bytes, and reads no tensor that lies before them. Raises
    ValueError naming the tensor whose type cannot travel.
    """
    header = _header_of(arrays, metadata)
    pending, skipped = bytearray(header[begin:]), max(0, begin - len(header))
    while len(pending) >= PIECE_BYTES:
        yield bytes(pending[:PIECE_BYTES])
        del pending[:PIECE_BYTES]
    for tensor in arrays.values():
        num_bytes = _data_of(tensor).nbytes
        if num_bytes <= skipped:
            skipped -= num_bytes
            continue
        data = np.ascontiguousarray(_data_of(tensor), dtype=_little_endian(tensor)).reshape(-1)
        view = data.view(np.uint8).data[skipped:]
        skipped = 0
        while len(pending) + len(view) >= PIECE_BYTES:
            piece, pending = pending, bytearray()
            taken = PIECE_BYTES - len(piece)
            yield bytes(piece + view[:taken]) if piece else view[:taken]
            view = view[taken:]
        pending += view
    if pending:
        yield bytes(pending)


def decode(data: bytes | bytearray | memoryview | mmap.mmap) -> dict[str, Tensor]:
    """Checks a whole safetensors file and gives its tensors as views of its bytes, without copying.

    Raises ProblemError (malformed-update) naming the tensor.
    """
    view = memoryview(data).cast("B")
    if len(view) < LENGTH_BYTES:
        raise malformed(f"{len(view)} bytes are too few for a safetensors file")
    data_start = LENGTH_BYTES + header_length(bytes(view[:LENGTH_BYTES]))
    if data_start > len(view):
        raise malformed(f"the file ends after {len(view)} bytes, within its header")
    header = parse_header(bytes(view[LENGTH_BYTES:data_start]))
    if len(view) != header.num_bytes:
        raise malformed(f"the file has {len(view)} bytes; its header announces {header.num_bytes}")
    return {
        spec.name: _tensor_of(spec, view[data_start + spec.begin : data_start + spec.end]) for spec in header.tensors
    }


def dtype_of(tensor: Tensor) -> str:
    """Names a tensor's safetensors type; raises ValueError for one that cannot travel."""
    if isinstance(tensor, RawTensor):
        if tensor.dtype != "BF16" or tensor.data.dtype != np.uint16:
            raise ValueError(f"a raw tensor of type {tensor.dtype} and {tensor.data.dtype} is not BF16 as uint16")
        return tensor.dtype
    dtype = _NUMPY_TYPES.get(tensor.dtype.newbyteorder("<"))
    if dtype is None:
        raise ValueError(f"the type {tensor.dtype} cannot travel; known are {', '.join(CARRIERS)}")
    return dtype


def _tensor_of(spec: TensorSpec, data: memoryview) -> Tensor:
    values = np.frombuffer(data, dtype=CARRIERS[spec.dtype]).reshape(spec.shape)
    if spec.dtype == "BF16":
        return RawTensor("BF16", values)
    if spec.dtype == "BOOL":
        if values.size and values.max() > 1:
            raise malformed(f"tensor {spec.name!r} holds a byte of {values.max()}; a BOOL is 0 or 1")
        return values.view(np.bool_)
    return values


def _header_of(arrays: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    return render_header([(name, dtype_of(tensor), tensor.shape) for name, tensor in arrays.items()], metadata)


def _data_of(tensor: Tensor) -> NDArray[Any]:
    return tensor.data if isinstance(tensor, RawTensor) else tensor


def _little_endian(tensor: Tensor) -> np.dtype[Any]:
    return _data_of(tensor).dtype.newbyteorder("<")
