"""Sessions of a masked round as shards: a strategy combines their means, and one that is poisoned is outvoted."""

import hashlib
import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.flow import contributions, windows
from aggregator_service.flow.fold import SealedUpdate, aggregate, aggregate_masked
from aggregator_service.flow.masked_sums import MaskedRound, MaskedSum
from fl_protocol.arrays import decode, encode
from fl_protocol.masked_vectors import ring_of
from fl_protocol.masking.errors import RingError
from fl_protocol.masking.quantisation import clipping_factor, quantise
from fl_protocol.masking.ring import check_sum, measure_sum
from fl_protocol.runs import RunSpec
from fl_protocol.specs.secure_aggregation import clipping_norm
from tests.domain import test_robust_learning as learning

STRATEGIES = {
    "median": {"kind": "median"},
    "trimmed_mean": {"kind": "trimmed_mean", "trim_fraction": 0.2},
    "krum": {"kind": "krum", "num_byzantine": 1},
    "multi_krum": {"kind": "multi_krum", "num_byzantine": 1, "num_selected": 3},
    "bulyan": {"kind": "bulyan", "num_byzantine": 0},
    "geometric_median": {"kind": "geometric_median", "weighting": "uniform", "smoothing": 1e-9},
}
MEAN = {"kind": "mean", "weighting": "uniform"}
STEP = 2.0**-20


def spec_of(strategy, *, members=4, sessions=5):
    masked = {"kind": "pairwise", "min_members": 3, "target_members": members}
    count = members * sessions
    return RunSpec.model_validate(
        {
            "round": {"quorum": count, "cohort_size": count},
            "strategy": strategy,
            "secure_aggregation": masked,
        }
    )


def reader(blob):
    return lambda begin, end: memoryview(blob)[begin:end]


def session_sum(totals, weight):
    blob = np.asarray(totals, dtype="<i8").tobytes()
    return MaskedSum("sha256:" + hashlib.sha256(blob).hexdigest(), weight, {}, reader(blob))


def fold(base, sums, spec, *, step=STEP):
    written = bytearray()
    aggregate_masked(
        reader(b"".join(encode(base, {}))),
        MaskedRound(sums, step, sum(one.total_weight for one in sums)),
        spec=spec,
        round_number=1,
        optimizer_state=None,
        write_model=written.extend,
        write_state=lambda data: None,
    )
    return bytes(written)


def examples(seed, *, sessions=5, size=70):
    source = np.random.default_rng(seed)
    totals = source.integers(-(2**30), 2**30, (sessions, size))
    return totals, source.integers(3, 5, sessions).tolist()


def as_float64(size):
    return {"a": np.zeros(size - 30), "b": np.zeros((5, 6))}


def fold_of_means(base, means, spec):
    """Lets the strategy of a run that is not masked combine updates that are the sessions' means."""
    updates = []
    for number, mean in enumerate(means):
        first, second = base
        cut = base[first].size
        delta = {first: mean[:cut].reshape(base[first].shape), second: mean[cut:].reshape(base[second].shape)}
        max_abs = {name: float(np.abs(values).max()) for name, values in delta.items()}
        blob = b"".join(encode(delta, {"num_examples": "1"}))
        updates.append(SealedUpdate(str(number), f"{number:02}", 1, max_abs, reader(blob)))
    written = bytearray()
    plain = spec.model_copy(update={"secure_aggregation": RunSpec().secure_aggregation})
    aggregate(
        reader(b"".join(encode(base, {}))),
        updates,
        spec=plain,
        round_number=1,
        optimizer_state=None,
        write_model=written.extend,
        write_state=lambda data: None,
    )
    return bytes(written)


@pytest.mark.parametrize("kind", STRATEGIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), sessions=st.integers(5, 9))
def test_sessions_means_are_combined_as_updates_are(kind, seed, sessions):
    totals, weights = examples(seed, sessions=sessions)
    spec, base = spec_of(STRATEGIES[kind]), as_float64(totals.shape[1])
    sums = [session_sum(total, weight) for total, weight in zip(totals, weights, strict=True)]
    in_order = sorted(range(sessions), key=lambda at: sums[at].digest)
    means = [totals[at] * STEP / weights[at] for at in in_order]
    found = fold(base, sums, spec)
    assert found == fold_of_means(base, means, spec)
    flat = np.concatenate([values.reshape(-1) for values in decode(found).values()])
    if kind == "median":
        np.testing.assert_allclose(flat, np.median(means, axis=0), rtol=1e-15)
    if kind == "trimmed_mean":
        np.testing.assert_allclose(flat, np.sort(means, axis=0)[1:-1].mean(axis=0), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", STRATEGIES)
@settings(max_examples=10, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_neither_the_order_of_sessions_nor_a_window_changes_a_bit(kind, data, seed):
    totals, weights = examples(seed)
    base = {
        "a": np.zeros(40, dtype=np.float32),
        "counter": np.array([3, -4]),
        "frozen": np.ones(7, dtype=np.float32),
        "b": np.ones((5, 6), dtype=np.float16),
    }
    spec = spec_of(STRATEGIES[kind])
    spec = RunSpec.model_validate(spec.model_dump() | {"parameters": {"trainable": ["a", "b"]}})
    sums = [session_sum(total, weight) for total, weight in zip(totals, weights, strict=True)]
    expected = fold(base, sums, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_ELEMENTS", data.draw(st.sampled_from([1, 3, 8, 41, 1000])))
        patch.setattr(contributions, "_BLOCK_NUM_BYTES", 0)
        patch.setattr(contributions, "_MIN_BLOCK_ELEMENTS", data.draw(st.sampled_from([1, 7, 64, 1000])))
        assert fold(base, data.draw(st.permutations(sums)), spec) == expected
    found = decode(expected)
    np.testing.assert_array_equal(found["counter"], base["counter"])
    np.testing.assert_array_equal(found["frozen"], base["frozen"])
    assert np.all(found["a"] != base["a"])


def test_a_session_counts_the_same_however_many_members_it_has():
    base = as_float64(31)
    sums = [session_sum(np.full(31, value * weight), weight) for value, weight in ((1, 3), (2, 3), (100, 400))]
    assert decode(fold(base, sums, spec_of({"kind": "median"})))["a"][0] == 2 * STEP


def test_of_sessions_that_are_as_good_the_one_with_the_smaller_digest_is_taken_whenever_it_ended():
    base, spec = as_float64(31), spec_of(STRATEGIES["krum"])
    # Their two nearest others are 1 and 4 away from both -2 and 2.
    sums = [session_sum(np.full(31, value), 3) for value in (-3, -2, 10, 2, 3)]
    first = min((sums[1], sums[3]), key=lambda one: one.digest)
    for order in itertools.permutations(sums):
        expected = -2 if first is sums[1] else 2
        assert decode(fold(base, order, spec))["a"][0] == pytest.approx(expected * STEP / 3, rel=1e-15)


# ---- X4: a learning task on real images, five shards of four clients, one of which is poisoned


NUM_ROUNDS, MEMBERS = 4, 4


def vector_of(delta, spec, number):
    flat = np.concatenate([values.astype(np.float64).reshape(-1) for values in delta.values()])
    factor = clipping_factor(float(flat @ flat), clipping_norm=clipping_norm(spec))
    return quantise(flat, ring=ring_of(spec), key=hashlib.sha256(b"%d" % number).digest(), factor=factor)


def led_astray(honest, spec):
    """Gives the sum that one member makes of a session: as far the wrong way as the server's check of sums lets it."""
    ring, bound = ring_of(spec), clipping_norm(spec)
    total = np.rint(-honest / np.linalg.norm(honest) * 0.999 * MEMBERS * bound / ring.step).astype(np.int64)
    checked = {"ring": ring, "num_members": MEMBERS, "num_coordinates": total.size, "clipping_norm": bound}
    check_sum(measure_sum(total), np.empty(0, dtype=np.int64), **checked)
    with pytest.raises(RingError):
        check_sum(measure_sum(total * 101 // 100), np.empty(0, dtype=np.int64), **checked)
    return total


@cache
def learned(kind, attack):
    """Gives the accuracy on images that nobody trains on, after the last round."""
    spec = spec_of(MEAN if kind == "mean" else STRATEGIES[kind])
    model = {"w": np.zeros((784, 10), dtype=np.float32), "b": np.zeros(10, dtype=np.float32)}
    for number in range(NUM_ROUNDS):
        sums = []
        for shard in range(5):
            total = np.zeros(7850, dtype=np.int64)
            for member in range(MEMBERS):
                pictures, labels = learning.images()[0][(MEMBERS * shard + member) % 15]
                flipped = attack == "flipped labels" and shard == 0
                delta = learning.local_delta(model, pictures, 9 - labels if flipped else labels)
                total += vector_of(delta, spec, 100 * number + MEMBERS * shard + member)
            if attack == "one member" and shard == 0:
                total = led_astray(total, spec)
            sums.append(session_sum(total, MEMBERS))
        model = decode(fold(model, sums, spec, step=ring_of(spec).step))
    return learning.accuracy(model)


def test_x4_one_member_of_one_shard_destroys_the_mean():
    assert learned("mean", "none") > 0.75
    assert learned("mean", "one member") < 0.2


@pytest.mark.parametrize("attack", ["one member", "flipped labels"])
@pytest.mark.parametrize("kind", ["median", "trimmed_mean", "krum", "multi_krum", "geometric_median"])
def test_x4_one_poisoned_shard_of_five_costs_a_robust_strategy_at_most_two_points(kind, attack):
    assert learned(kind, attack) >= learned("mean", "none") - 0.02
