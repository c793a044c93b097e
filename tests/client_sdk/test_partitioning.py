"""Each way to split a data set: a partition, reproducible, of the sizes and the skew that its docstring promises."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client_sdk import partitioning
from client_sdk.errors import UsageError
from client_sdk.partitioning import Partition

Split = Callable[[NDArray[np.int64], int, int], Partition]

SPLITS: dict[str, Split] = {
    "iid": lambda labels, clients, seed: partitioning.iid(labels.size, clients, seed=seed),
    "dirichlet": lambda labels, clients, seed: partitioning.dirichlet(labels, clients, alpha=0.1, seed=seed),
    "quantity_skew": lambda labels, clients, seed: partitioning.quantity_skew(
        labels.size, clients, alpha=0.3, seed=seed
    ),
    "by_attribute": lambda labels, clients, seed: partitioning.by_attribute(labels, clients, seed=seed),
    "pathological": lambda labels, clients, seed: partitioning.pathological(
        labels, clients, labels_per_client=np.unique(labels).size, seed=seed
    ),
}

MNIST_LIKE = np.repeat(np.arange(10), 200)


@st.composite
def federations(draw: st.DrawFn) -> tuple[NDArray[np.int64], int]:
    """Labels with at least as many examples of each as there are clients."""
    num_clients = draw(st.integers(1, 6))
    counts = draw(st.lists(st.integers(num_clients, 20), min_size=1, max_size=5))
    labels = np.repeat(np.array([3, 1, 4, 15, 9][: len(counts)]), counts)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels), num_clients


@pytest.mark.parametrize("name", SPLITS)
@settings(max_examples=40, deadline=None)
@given(federation=federations(), seed=st.integers(0, 2**32))
def test_every_split_is_a_partition_and_the_seed_decides_it(
    name: str, federation: tuple[NDArray[np.int64], int], seed: int
) -> None:
    labels, num_clients = federation
    parts = SPLITS[name](labels, num_clients, seed)
    assert len(parts) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(labels.size))
    assert all(part.size and (np.diff(part) > 0).all() and part.dtype == np.int64 for part in parts)
    again = SPLITS[name](labels, num_clients, seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", ["iid", "dirichlet", "quantity_skew", "pathological"])
def test_another_seed_gives_another_split_and_a_generator_may_be_given(name: str) -> None:
    first, second = SPLITS[name](MNIST_LIKE, 20, 1), SPLITS[name](MNIST_LIKE, 20, 2)
    assert any(not np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    drawn = partitioning.iid(100, 7, seed=np.random.default_rng(5))
    assert all(np.array_equal(one, other) for one, other in zip(drawn, partitioning.iid(100, 7, seed=5), strict=True))


@given(num_examples=st.integers(10, 500), num_clients=st.integers(1, 10))
def test_iid_sizes_differ_by_one_at_most(num_examples: int, num_clients: int) -> None:
    sizes = [part.size for part in partitioning.iid(num_examples, num_clients, seed=0)]
    assert max(sizes) - min(sizes) <= 1


def skew(labels: NDArray[np.int64], parts: Partition) -> float:
    """Mean total variation distance between a client's labels and everyone's."""
    num_labels = int(labels.max()) + 1
    everyone = np.bincount(labels, minlength=num_labels) / labels.size
    distances = [
        np.abs(np.bincount(labels[part], minlength=num_labels) / part.size - everyone).sum() / 2 for part in parts
    ]
    return float(np.mean(distances))


def test_the_dirichlet_skew_grows_as_alpha_falls() -> None:
    alphas = (100.0, 10.0, 1.0, 0.1, 0.01)
    skews = [
        np.mean([skew(MNIST_LIKE, partitioning.dirichlet(MNIST_LIKE, 20, alpha=alpha, seed=seed)) for seed in range(5)])
        for alpha in alphas
    ]
    assert skews == sorted(skews)
    assert skews[0] < 0.1
    assert skews[-1] > 0.7


def test_a_label_is_shared_out_by_its_dirichlet_draw() -> None:
    labels = np.zeros(10_000, dtype=np.int64)
    expected = np.random.default_rng(3)
    expected.permutation(10_000)
    shares = expected.dirichlet(np.full(5, 0.5))
    sizes = [part.size for part in partitioning.dirichlet(labels, 5, alpha=0.5, seed=3)]
    assert np.allclose(np.array(sizes) / 10_000, shares, atol=2e-4)


@settings(max_examples=50, deadline=None)
@given(alpha=st.sampled_from([0.01, 0.1, 1.0]), min_examples=st.integers(0, 100), seed=st.integers(0, 100))
def test_no_client_has_fewer_than_min_examples(alpha: float, min_examples: int, seed: int) -> None:
    for parts in (
        partitioning.dirichlet(MNIST_LIKE, 20, alpha=alpha, min_examples=min_examples, seed=seed),
        partitioning.quantity_skew(MNIST_LIKE.size, 20, alpha=alpha, min_examples=min_examples, seed=seed),
    ):
        assert min(part.size for part in parts) >= min_examples


def test_quantity_skew_changes_the_sizes_and_not_the_labels() -> None:
    parts = partitioning.quantity_skew(MNIST_LIKE.size, 10, alpha=0.5, min_examples=10, seed=1)
    sizes = [part.size for part in parts]
    assert max(sizes) > 4 * min(sizes)
    assert skew(MNIST_LIKE, [part for part in parts if part.size >= 200]) < 0.2


@settings(max_examples=60, deadline=None)
@given(num_clients=st.integers(1, 12), wanted=st.integers(1, 10), seed=st.integers(0, 1000))
def test_a_pathological_client_holds_exactly_its_number_of_labels(num_clients: int, wanted: int, seed: int) -> None:
    if num_clients * wanted < 10:
        with pytest.raises(UsageError, match="leave out some of 10 labels"):
            partitioning.pathological(MNIST_LIKE, num_clients, labels_per_client=wanted, seed=seed)
        return
    parts = partitioning.pathological(MNIST_LIKE, num_clients, labels_per_client=wanted, seed=seed)
    held = [np.unique(MNIST_LIKE[part]) for part in parts]
    assert all(labels.size == wanted for labels in held)
    holders = np.bincount(np.concatenate(held), minlength=10)
    assert holders.max() - holders.min() <= 1


def test_an_attribute_makes_one_client_a_value_splits_the_largest_and_joins_the_smallest() -> None:
    hospitals = np.array(["b"] * 90 + ["a"] * 30 + ["c"] * 10)
    natural = partitioning.by_attribute(hospitals, seed=0)
    assert [set(hospitals[part]) for part in natural] == [{"a"}, {"b"}, {"c"}]
    split = partitioning.by_attribute(hospitals, 5, seed=0)
    assert [(set(hospitals[part]), part.size) for part in split] == [
        ({"a"}, 30),
        ({"b"}, 30),
        ({"b"}, 30),
        ({"b"}, 30),
        ({"c"}, 10),
    ]
    joined = partitioning.by_attribute(hospitals, 2, seed=0)
    assert [(set(hospitals[part]), part.size) for part in joined] == [({"b"}, 90), ({"a", "c"}, 40)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partitioning.iid(3, 4, seed=0), "3 examples are too few for 4 clients with at least 1"),
        (lambda: partitioning.iid(3, 0, seed=0), "num_clients 0 must be at least 1"),
        (lambda: partitioning.dirichlet([0, 1], 1, alpha=0, seed=0), "alpha 0 must be 0.001 to 1e"),
        (lambda: partitioning.dirichlet([0, 1], 2, alpha=1, seed=0, min_examples=2), "2 examples are too few"),
        (lambda: partitioning.dirichlet([[0, 1]], 1, alpha=1, seed=0), r"labels have the shape \[1, 2\]"),
        (lambda: partitioning.pathological([0, 1], 1, labels_per_client=3, seed=0), "labels_per_client 3 must be 1"),
        (
            lambda: partitioning.pathological([0, 1, 1], 2, labels_per_client=2, seed=0),
            "label number 0 .* has 1 examples for 2 clients",
        ),
        (lambda: partitioning.by_attribute(["a"], 2, seed=0), "1 examples are too few for 2 clients"),
    ],
)
def test_a_split_that_cannot_be_is_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
