"""Inner products of updates: the same bits however the elements come, and near the float64 ones, whatever they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain.inner_products import InnerProducts, centre_of, squared_distances


def products_of(tensors, *, centre, cuts=()):
    products = InnerProducts(len(tensors[0]), centre=centre, dtype=tensors[0].dtype)
    for rows in tensors:
        products.begin_tensor([float(np.abs(row).max()) for row in rows], rows.shape[1])
        for piece in np.split(rows, sorted(cut % (rows.shape[1] + 1) for cut in cuts), axis=1):
            products.add(piece)
    return products.result()


def example(seed, *, number=6, scale=1.0, dtype=np.float32):
    source = np.random.default_rng(seed)
    return [(source.normal(size=(number, size)) * scale).astype(dtype) for size in (9_000, 40)]


def reference(tensors, centre):
    everything = np.concatenate(tensors, axis=1).astype(np.float64)
    differences = everything - everything[centre]
    return differences @ differences.T


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), centre=st.integers(0, 5), cuts=st.lists(st.integers(0, 9_000), max_size=8))
def test_neither_the_cuts_nor_the_order_of_the_elements_changes_a_bit(seed, centre, cuts):
    tensors = example(seed)
    source = np.random.default_rng(seed)
    shuffled = [np.ascontiguousarray(rows[:, source.permutation(rows.shape[1])]) for rows in tensors]
    expected = products_of(tensors, centre=centre)
    np.testing.assert_array_equal(products_of(tensors, centre=centre, cuts=cuts), expected)
    np.testing.assert_array_equal(products_of(shuffled, centre=centre, cuts=cuts), expected)


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1, np.float32), (1e-30, np.float32), (1, np.float64), (1e-100, np.float64)]
)
def test_they_are_near_those_of_float64_whatever_their_size(scale, dtype):
    tensors = example(1, scale=scale, dtype=dtype)
    expected = reference(tensors, 2)
    error = 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(products_of(tensors, centre=2), expected, rtol=0, atol=error)


def test_a_huge_update_does_not_make_the_distances_of_the_others_any_coarser():
    tensors = example(2)
    expected = squared_distances(reference(tensors, 0))[:5, :5]
    for rows in tensors:
        rows[5] *= np.float32(1e25)
    magnitudes = [max(float(np.abs(rows[number]).max()) for rows in tensors) for number in range(6)]
    centre = centre_of(magnitudes)
    assert centre != 5
    found = squared_distances(products_of(tensors, centre=centre))
    np.testing.assert_allclose(found[:5, :5], expected, rtol=1e-5)
    assert np.all(found[5, :5] > 1e50)
