"""Gives back what an encoded update stands for: for tests, and for whoever wants to see what was sent."""

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from fl_protocol.arrays import RawTensor, Tensor, dtype_of
from fl_protocol.dtypes import Float64Array, as_float64
from fl_protocol.encodings.forms import INDICES_PREFIX, SCALES_PREFIX, Dense, Quantised, Sparse, form_of
from fl_protocol.encodings.quantised import dequantise, unpack_int4
from fl_protocol.encodings.random_mask import SEED_KEY, mask_indices
from fl_protocol.specs.encodings import DenseEncoding, Encoding
from fl_protocol.tensors import TensorSpec


def decode_delta(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, model: Mapping[str, Tensor], encoding: Encoding
) -> Mapping[str, Tensor]:
    """Gives the deltas of an encoded update in float64; integers and control variates are as they were sent."""
    if encoding == DenseEncoding(compression=encoding.compression):
        return tensors
    decoded: dict[str, Tensor] = {name: sent for name, sent in tensors.items() if name not in model}
    for name, tensor in model.items():
        if name not in tensors:
            continue
        spec = TensorSpec(name, dtype_of(tensor), tensor.shape, 0, 0)
        if not spec.is_float:
            decoded[name] = tensors[name]
            continue
        values = _values_of(spec, tensors, seed=metadata.get(SEED_KEY, ""), encoding=encoding)
        decoded[name] = values.reshape(spec.shape)
    return decoded


def _values_of(spec: TensorSpec, tensors: Mapping[str, Tensor], *, seed: str, encoding: Encoding) -> Float64Array:
    form, sent = form_of(spec, encoding), tensors[spec.name]
    match form:
        case Dense():
            return as_float64(_array(sent), dtype_of(sent))
        case Quantised():
            scales = _array(tensors[SCALES_PREFIX + spec.name])
            codes = _array(sent).reshape(-1) if form.bits == 8 else unpack_int4(_array(sent))[: form.num_elements]
            return dequantise(codes, scales, row_elements=form.row_elements, first_in_row=0)
        case Sparse():
            values = np.zeros(form.num_elements)
            if form.has_indices:
                values[_array(tensors[INDICES_PREFIX + spec.name])] = _array(sent)
            else:
                drawn = mask_indices(
                    bytes.fromhex(seed), spec.name, num_elements=values.size, count=form.count, first=0, last=form.count
                )
                values[drawn] = _array(sent)
            return values
        case _:
            assert_never(form)


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.data if isinstance(tensor, RawTensor) else tensor
