"""The norm of an update: the same bits however it is cut, and a clip factor that never leaves too much."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain.update_norm import BLOCK_ELEMENTS, UpdateNorm, clip_factor
from fl_protocol.dtypes import as_float64, from_float64


def norm_of(tensors, cuts=()):
    norm = UpdateNorm()
    for name, (values, dtype) in tensors.items():
        for piece in np.split(values, sorted(cut % (values.size + 1) for cut in cuts)):
            norm.add(name, piece, dtype=dtype)
    return norm.result()


def example(seed):
    source = np.random.default_rng(seed)
    sizes = {"a": 3 * BLOCK_ELEMENTS + 17, "b": 5, "c": BLOCK_ELEMENTS, "d": 0}
    dtypes = {"a": "F32", "b": "BF16", "c": "F16", "d": "F64"}
    return {name: (from_float64(source.normal(size=size), dtypes[name]), dtypes[name]) for name, size in sizes.items()}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 2**17), max_size=30), st.randoms(use_true_random=False))
def test_neither_the_cuts_nor_the_order_of_the_tensors_changes_a_bit(seed, cuts, random):
    tensors = example(seed)
    names = list(tensors)
    random.shuffle(names)
    assert norm_of({name: tensors[name] for name in names}, cuts) == norm_of(tensors)


def test_it_is_the_l2_norm_over_all_tensors():
    tensors = example(1)
    everything = np.concatenate([as_float64(values, dtype) for values, dtype in tensors.values()])
    assert norm_of(tensors) == pytest.approx(np.linalg.norm(everything), rel=1e-14)
    assert norm_of({}) == 0


@given(st.floats(0, 1e60), st.floats(1e-30, 1e30))
def test_a_clipped_update_is_as_long_as_it_may_be_and_no_longer(norm, bound):
    factor = clip_factor(norm, bound)
    assert 0 < factor <= 1
    if norm > bound:
        assert factor * norm <= bound
        assert factor * norm >= bound * (1 - 2.0**-22)
    else:
        assert factor == 1
    mantissa, _ = math.frexp(factor)
    assert (mantissa * 2**24).is_integer()
