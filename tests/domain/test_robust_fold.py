"""The fold of every strategy: blobs in, the next model's bytes out, against independent float64 references."""

import hashlib
import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.flow import contributions, windows
from aggregator_service.flow.fold import SealedUpdate, aggregate
from aggregator_service.flow.read_ahead import ReadAhead
from fl_protocol.arrays import RawTensor, decode, dtype_of, encode
from fl_protocol.dtypes import as_float64, from_float64
from fl_protocol.runs import RunSpec

STRATEGIES = {
    "mean": {"weighting": "num_examples"},
    "median": {},
    "trimmed_mean": {"trim_fraction": 0.2},
    "krum": {"num_byzantine": 2},
    "multi_krum": {"num_byzantine": 2, "num_selected": 4},
    "bulyan": {"num_byzantine": 2},
    "geometric_median": {"num_iterations": 30, "smoothing": 1e-6},
}


def _no_state(data: bytes) -> None:
    assert not data


def reader(blob):
    return lambda begin, end: memoryview(blob)[begin:end]


def wide(tensor):
    if isinstance(tensor, RawTensor):
        return as_float64(tensor.data.reshape(-1), tensor.dtype)
    return tensor.astype(np.float64).reshape(-1)


def sealed(arrays, weight=1, identity="u"):
    blob = b"".join(encode(arrays, {"num_examples": str(weight), "note": identity}))
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    max_abs = {name: float(np.abs(wide(tensor)).max(initial=0)) for name, tensor in arrays.items()}
    return SealedUpdate(identity, digest, weight, max_abs, reader(blob))


def spec_of(kind, **more):
    rounds = {"quorum": 100, "cohort_size": 100, "min_updates": 11}
    return RunSpec.model_validate({"round": rounds, "strategy": {"kind": kind} | STRATEGIES[kind] | more})


def fold(base, updates, spec):
    model = bytearray()
    aggregate(
        reader(b"".join(encode(base, {}))),
        updates,
        spec=spec,
        round_number=1,
        optimizer_state=None,
        write_model=model.extend,
        write_state=_no_state,
    )
    return bytes(model)


# ---- references: whole updates as rows of a float64 matrix, nothing shared with the code under test


def clip(matrix, bound):
    norms = np.sqrt((matrix**2).sum(axis=1))
    return matrix * np.minimum(1, bound / np.maximum(norms, 1e-300))[:, None]


def distances_of(matrix):
    return np.array([[((one - other) ** 2).sum() for other in matrix] for one in matrix])


def krum_order(distances, f):
    nearest = max(1, len(distances) - f - 2)
    scores = [sorted(np.delete(row, at))[:nearest] for at, row in enumerate(distances)]
    return np.argsort([sum(one) for one in scores], kind="stable")


def reference_mean(matrix, weights):
    return np.average(matrix, axis=0, weights=weights)


def reference_median(matrix, weights):
    return np.median(matrix, axis=0)


def reference_trimmed_mean(matrix, weights):
    number = len(matrix) * 2 // 10
    return np.sort(matrix, axis=0)[number : len(matrix) - number].mean(axis=0)


def reference_krum(matrix, weights):
    return matrix[krum_order(distances_of(matrix), 2)[0]]


def reference_multi_krum(matrix, weights):
    return matrix[krum_order(distances_of(matrix), 2)[:4]].mean(axis=0)


def reference_bulyan(matrix, weights, f=2):
    left, chosen = list(range(len(matrix))), []
    distances = distances_of(matrix)
    while len(chosen) < len(matrix) - 2 * f:
        best = left[krum_order(distances[np.ix_(left, left)], f)[0]]
        left.remove(best)
        chosen.append(best)
    values = np.sort(matrix[chosen], axis=0)
    order = np.argsort(np.abs(values - np.median(values, axis=0)), axis=0, kind="stable")
    return np.take_along_axis(values, order[: len(chosen) - 2 * f], axis=0).mean(axis=0)


def reference_geometric_median(matrix, weights):
    shares = np.array(weights) / sum(weights)
    centre = shares @ matrix
    for _ in range(30):
        by_distance = shares / np.maximum(1e-6, np.linalg.norm(matrix - centre, axis=1))
        centre = by_distance @ matrix / by_distance.sum()
    return centre


REFERENCES = {
    "mean": reference_mean,
    "median": reference_median,
    "trimmed_mean": reference_trimmed_mean,
    "krum": reference_krum,
    "multi_krum": reference_multi_krum,
    "bulyan": reference_bulyan,
    "geometric_median": reference_geometric_median,
}


def example(number, seed, *, shapes=((7,), (3, 5)), spread=1.0, ties=False):
    source = np.random.default_rng(seed)

    def draw(shape):
        values = source.normal(size=shape) * spread
        return (np.round(values) if ties else values).astype(np.float32)

    names = [f"t{at}" for at in range(len(shapes))]
    deltas = [{name: draw(shape) for name, shape in zip(names, shapes, strict=True)} for _ in range(number)]
    base = {name: np.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
    return base, deltas, [int(one) for one in source.integers(1, 1000, number)]


def in_double(deltas):
    """The same values in a model of float64, so that the result shows every bit of the delta."""
    return [{name: tensor.astype(np.float64) for name, tensor in delta.items()} for delta in deltas]


def matrix_of(updates, deltas):
    """The deltas as rows in the order of their updates' digests, with the order."""
    order = sorted(range(len(updates)), key=lambda at: updates[at].digest)
    return np.array([np.concatenate([wide(tensor) for tensor in deltas[at].values()]) for at in order]), order


@pytest.mark.parametrize("kind", STRATEGIES)
@settings(max_examples=25, deadline=None)
@given(number=st.integers(11, 24), seed=st.integers(0, 2**32), ties=st.booleans())
def test_each_strategy_follows_its_float64_reference(kind, number, seed, ties):
    base, deltas, weights = example(number, seed, ties=ties and kind in ("mean", "median", "trimmed_mean"))
    deltas = in_double(deltas)
    updates = [sealed(delta, weight, str(at)) for at, (delta, weight) in enumerate(zip(deltas, weights, strict=True))]
    matrix, order = matrix_of(updates, deltas)
    found = decode(fold(base, updates, spec_of(kind)))
    expected = REFERENCES[kind](matrix, [weights[at] for at in order])
    # The geometric median knows distances on a grid of 20 bits; the others only choose by them.
    error = 3e-6 if kind == "geometric_median" else 1e-12
    np.testing.assert_allclose(np.concatenate([wide(found[name]) for name in base]), expected, rtol=0, atol=error)


@pytest.mark.parametrize("number", [1, 2, 3, 10, 11, 64, 128, 129, 150])
@pytest.mark.parametrize("kind", ["median", "trimmed_mean"])
def test_any_number_of_updates_is_sorted(kind, number):
    base, deltas, _ = example(number, number, ties=number % 2 == 0)
    updates = [sealed(delta, 1, str(at)) for at, delta in enumerate(in_double(deltas))]
    matrix, _ = matrix_of(updates, deltas)
    found = decode(fold(base, updates, spec_of(kind)))
    expected = REFERENCES[kind](matrix, None)
    np.testing.assert_allclose(np.concatenate([wide(found[name]) for name in base]), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_type_of_tensor_is_combined_in_float64_and_rounded_once(kind, dtype):
    source = np.random.default_rng(5)

    def tensor(scale):
        values = from_float64(source.normal(size=50) * scale, dtype)
        return RawTensor(dtype, values) if dtype == "BF16" else values

    base, deltas = {"t0": tensor(1.0)}, [{"t0": tensor(0.1)} for _ in range(11)]
    updates = [sealed(delta, 3, str(at)) for at, delta in enumerate(deltas)]
    matrix, _ = matrix_of(updates, deltas)
    found = decode(fold(base, updates, spec_of(kind)))["t0"]
    assert dtype_of(found) == dtype
    expected = wide(base["t0"]) + REFERENCES[kind](matrix, [3] * 11)
    eps = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}[dtype]
    np.testing.assert_allclose(wide(found), expected, rtol=1.01 * eps, atol=1e-7 if dtype == "F32" else 1e-6)


@pytest.mark.parametrize("clips", [False, True], ids=["plain", "clip"])
@pytest.mark.parametrize("kind", STRATEGIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_neither_the_order_of_arrival_nor_a_window_nor_a_tile_changes_a_bit(kind, clips, data, seed):
    base, deltas, weights = example(12, seed, shapes=((40,), (5,), (3, 5)), spread=0.1)
    base = {name: tensor.astype(np.float32) for name, tensor in base.items()}
    source = np.random.default_rng(seed)
    base["half"], base["n"] = np.ones(9, dtype=np.float16), np.array([3, -4, 5])
    for at, delta in enumerate(deltas):
        delta["t1"][:] *= np.float32(-0.0 if at % 2 else 0.0)
        delta["half"] = source.normal(size=9).astype(np.float16)
        if at % 3:
            delta["n"] = source.integers(-50, 50, 3)
    updates = [sealed(delta, weight, str(at)) for at, (delta, weight) in enumerate(zip(deltas, weights, strict=True))]
    spec = spec_of(kind, max_update_norm={"kind": "clip", "norm": 0.7} if clips else None)
    expected = fold(base, updates, spec)
    window, block = data.draw(st.sampled_from([1, 3, 8, 41, 1000])), data.draw(st.sampled_from([1, 7, 64, 1000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_ELEMENTS", window)
        patch.setattr(contributions, "_BLOCK_NUM_BYTES", 0)
        patch.setattr(contributions, "_MIN_BLOCK_ELEMENTS", block)
        assert fold(base, [updates[at] for at in data.draw(st.permutations(range(12)))], spec) == expected


@pytest.mark.parametrize("kind", STRATEGIES)
def test_an_update_is_clipped_before_it_is_combined(kind):
    base, deltas, weights = example(13, 8)
    for at in (2, 5):
        deltas[at] = {name: tensor * np.float32(1e3) for name, tensor in deltas[at].items()}
    deltas = in_double(deltas)
    updates = [sealed(delta, weight, str(at)) for at, (delta, weight) in enumerate(zip(deltas, weights, strict=True))]
    matrix, order = matrix_of(updates, deltas)
    found = decode(fold(base, updates, spec_of(kind, max_update_norm={"kind": "clip", "norm": 3.0})))
    expected = REFERENCES[kind](clip(matrix, 3.0), [weights[at] for at in order])
    np.testing.assert_allclose(np.concatenate([wide(found[name]) for name in base]), expected, rtol=1e-6, atol=1e-6)


def test_updates_within_the_norm_are_not_touched_by_clipping():
    base, deltas, weights = example(11, 9)
    updates = [sealed(delta, weight, str(at)) for at, (delta, weight) in enumerate(zip(deltas, weights, strict=True))]
    base = {name: tensor.astype(np.float32) for name, tensor in base.items()}
    for kind in STRATEGIES:
        far = spec_of(kind, max_update_norm={"kind": "clip", "norm": 1e6})
        assert fold(base, updates, far) == fold(base, updates, spec_of(kind))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_counters_move_by_the_median_or_the_mean_of_the_updates_that_count(kind):
    base, deltas, _ = example(11, 10)
    base["n"] = np.array([100, -100], dtype=np.int32)
    source = np.random.default_rng(11)
    for at, delta in enumerate(in_double(deltas)):
        deltas[at] = delta | ({} if at in (3, 7) else {"n": source.integers(-1000, 1000, 2).astype(np.int32)})
    updates = [sealed(delta, 2, str(at)) for at, delta in enumerate(deltas)]
    found = decode(fold(base, updates, spec_of(kind)))["n"]
    held = {updates[at].digest: delta["n"] for at, delta in enumerate(deltas) if "n" in delta}
    chosen = _chosen_digests(kind, updates, deltas)
    counters = np.array([held[digest] for digest in chosen if digest in held])
    if kind == "geometric_median":
        assert np.all(np.abs(found - base["n"]) <= 1000)
        return
    middle = np.mean if kind in ("mean", "krum", "multi_krum") else np.median
    expected = np.rint(middle(counters, axis=0)) if len(counters) else 0
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, base["n"] + expected)


def _chosen_digests(kind, updates, deltas):
    floats = [{name: delta[name] for name in ("t0", "t1")} for delta in deltas]
    matrix, order = matrix_of(updates, floats)
    digests = [updates[at].digest for at in order]
    if kind == "krum":
        return [digests[krum_order(distances_of(matrix), 2)[0]]]
    if kind == "multi_krum":
        return [digests[at] for at in krum_order(distances_of(matrix), 2)[:4]]
    if kind != "bulyan":
        return digests
    left, chosen = list(range(11)), []
    while len(chosen) < 7:
        best = left[krum_order(distances_of(matrix[left]), 2)[0]]
        left.remove(best)
        chosen.append(digests[best])
    return chosen


@pytest.mark.parametrize("kind", ["krum", "multi_krum", "geometric_median"])
def test_a_large_common_part_does_not_hide_how_updates_differ(kind):
    # All updates share a part 10^4 times as large as their differences: a float32 Gram matrix sees nothing but it.
    source = np.random.default_rng(12)
    common = source.normal(size=2000) * 100
    base = {"t0": np.zeros(2000)}
    deltas = [{"t0": (common + source.normal(size=2000) * 0.01 * (1 + at / 10)).astype(np.float32)} for at in range(11)]
    updates = [sealed(delta, 1, str(at)) for at, delta in enumerate(in_double(deltas))]
    matrix, _ = matrix_of(updates, deltas)
    found = decode(fold(base, updates, spec_of(kind)))["t0"]
    expected = REFERENCES[kind](matrix, [1] * 11)
    np.testing.assert_allclose(found - common, expected - common, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in STRATEGIES if kind != "mean"])
def test_two_of_eleven_huge_updates_move_a_robust_strategy_no_further_than_honest_ones_reach(kind):
    base, deltas, _ = example(11, 13)
    for at in (4, 9):
        deltas[at] = {name: np.full_like(tensor, 1e30) for name, tensor in deltas[at].items()}
    updates = [sealed(delta, 1, str(at)) for at, delta in enumerate(in_double(deltas))]
    found = decode(fold(base, updates, spec_of(kind, num_iterations=300) if "geo" in kind else spec_of(kind)))
    for name in base:
        honest = np.array([deltas[at][name] for at in range(11) if at not in (4, 9)])
        assert np.all(np.abs(found[name]) <= np.abs(honest).max(axis=0) + 1e-9)


@pytest.mark.parametrize("kind", ["mean", "median"])
def test_each_chunk_of_each_update_is_read_once(monkeypatch, kind):
    monkeypatch.setattr(contributions, "_BLOCK_NUM_BYTES", 3 << 20)
    size = 700_000
    base = {"t0": np.zeros(size, dtype=np.float32)}
    fetched = []

    def counted(blob, begin, end):
        fetched.append((end - 1) // (1 << 20) - begin // (1 << 20) + 1)
        return memoryview(blob)[begin:end]

    updates = []
    for at in range(11):
        one = sealed({"t0": np.full(size, at, dtype=np.float32)}, 1, "x" * at)
        blob = bytes(one.read(0, 1 << 30))
        read = ReadAhead(partial(counted, blob), num_bytes=len(blob), num_readers=11)
        updates.append(SealedUpdate(one.update_id, one.digest, 1, one.max_abs, read))
    found = decode(fold(base, updates, spec_of(kind)))["t0"]
    assert np.all(found == 5)
    # 2.8 MB are three chunks.
    assert sum(fetched) == 11 * 3


def test_what_is_kept_for_the_next_read_is_bounded_over_all_updates():
    blob = bytes(range(256)) * (3 << 12)
    fetched = []

    def read(begin, end):
        fetched.append(end)
        return blob[begin:end]

    ahead = ReadAhead(read, num_bytes=len(blob), num_readers=1 << 9)
    cuts = [0, 8, 100, 40_000, 1 << 20, (1 << 20) + 1, len(blob) - 10, len(blob)]
    assert b"".join(ahead(begin, end) for begin, end in itertools.pairwise(cuts)) == blob
    # A 512th of 16 MiB is 32 KiB; nothing is read behind a chunk that nobody asked for, nor behind the end.
    assert fetched == [8 + (1 << 15), 40_000 + (1 << 15), 1 << 20, (1 << 20) + 1 + (1 << 15), len(blob)]
