"""A sum that goes on from one of some of the updates has the bits of one of all of them, whatever was begun and how."""

import hashlib
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain.privacy.noised_sum import gaussian_sum
from aggregator_service.flow import windows
from aggregator_service.flow.begun_sums import BegunSum, Scratch
from aggregator_service.flow.eager import add_batch
from aggregator_service.flow.fold import SealedUpdate, aggregate
from fl_protocol.arrays import RawTensor, encode
from fl_protocol.dtypes import as_float64, from_float64
from fl_protocol.runs import RunSpec
from fl_protocol.tensors import parse_header

BASE = {
    "steady": np.zeros(50, dtype=np.float32),
    "counter": np.array([3, 4]),
    "wild": np.zeros((4, 30), dtype=np.float32),
    "half": RawTensor("BF16", from_float64(np.ones(11), "BF16")),
    "wide": np.ones(5),
    "huge": np.array([2**40], dtype=np.int64),
}
PLAIN = RunSpec()
CLIPPED = RunSpec.model_validate({"strategy": {"kind": "mean", "max_update_norm": {"kind": "clip", "norm": 3.0}}})


def reader(blob):
    return lambda begin, end: memoryview(blob)[begin:end]


def unreadable(begin, end):
    raise AssertionError(f"the bytes {begin}..{end} of an update are read again")


def wide(tensor):
    if isinstance(tensor, RawTensor):
        return as_float64(tensor.data.reshape(-1), tensor.dtype)
    return tensor.astype(np.float64).reshape(-1)


def sealed(arrays, *, weight, number):
    blob = b"".join(encode(arrays, {"num_examples": str(weight)}))
    max_abs = {name: float(np.abs(wide(tensor)).max(initial=0)) for name, tensor in arrays.items()}
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    return SealedUpdate(f"update_{number}", digest, weight, max_abs, reader(blob))


def members(number, seed, *, growth=0.0):
    """Makes updates, each a power of ten larger than the one before where they grow; some have no integers."""
    source = np.random.default_rng(seed)
    made = []
    for at in range(number):
        scale = 10.0 ** (growth * at)
        arrays = {
            "steady": source.uniform(-1, 1, 50).astype(np.float32),
            "wild": (source.standard_normal((4, 30)) * scale).astype(np.float32),
            "half": RawTensor("BF16", from_float64(source.standard_normal(11), "BF16")),
            "wide": source.standard_normal(5) * scale,
        }
        if at % 3 == 0:
            arrays["counter"] = source.integers(-9, 9, 2)
        if at % 4 == 1:
            arrays["huge"] = np.array([int(scale) % 2**52], dtype=np.int64)
        made.append(sealed(arrays, weight=int(source.integers(1, 10**6)), number=at))
    return made


def model_blob():
    return b"".join(encode(BASE, {}))


def header():
    blob = model_blob()
    return parse_header(blob[8 : 8 + int.from_bytes(blob[:8], "little")])


def fold(updates, spec=PLAIN, *, begun=None, noised=None):
    model = bytearray()
    counted = aggregate(
        reader(model_blob()),
        updates,
        spec=spec,
        round_number=1,
        optimizer_state=None,
        write_model=model.extend,
        write_state=lambda data: None,
        begun=begun,
        noised=noised,
    )
    return bytes(model), counted


@contextmanager
def begin(updates, cuts=(), *, spec=PLAIN, bound=None):
    """Folds the updates in batches that end at the cuts and with the last."""
    with closing(Scratch(None)) as scratch:
        begun = BegunSum(scratch, bound)
        for end in (*cuts, len(updates)):
            add_batch(begun, updates[:end], most=end, model=header(), spec=spec)
        yield begun


@st.composite
def rounds(draw):
    """Draws a round, the order in which its updates come, and where its batches end; the last ones wait."""
    number = draw(st.integers(1, 15))
    updates = members(number, draw(st.integers(0, 2**32)), growth=draw(st.sampled_from([0.0, 0.1, 0.7])))
    if draw(st.booleans()):
        # As in a buffered run: the weights are discounted by staleness.
        updates = [replace(one, delta_weight=one.weight / (1 + at % 3)) for at, one in enumerate(updates)]
    order = draw(st.permutations(updates))
    ends = sorted(draw(st.sets(st.integers(1, number), min_size=1, max_size=4)))
    return order, ends


@settings(max_examples=60, deadline=None)
@given(rounds(), st.sampled_from([PLAIN, CLIPPED]), st.sampled_from([1 << 20, 7, 64]))
def test_any_batches_in_any_order_give_the_bits_of_one_fold(round_, spec, window):
    order, ends = round_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_ELEMENTS", window)
        with begin(order[: ends[-1]], ends[:-1], spec=spec) as begun:
            assert set(begun.members) == {one.update_id for one in order[: ends[-1]]}
            found = fold(order, spec, begun=begun)
    assert found == fold(order[::-1], spec)


@settings(max_examples=20, deadline=None)
@given(rounds(), st.binary(min_size=32, max_size=32))
def test_noised_sums_go_on_likewise(round_, key):
    order, ends = round_
    noised = gaussian_sum(0.5, clipping_norm=2.0, num_elements=186, key=key)
    spec = RunSpec.model_validate({"strategy": {"weighting": "uniform"}})
    with begin(order[: ends[-1]], ends[:-1], spec=spec, bound=2.0) as begun:
        assert fold(order, spec, begun=begun, noised=noised) == fold(order, spec, noised=noised)


def test_an_update_that_counts_as_zero_is_among_the_begun():
    updates = members(6, 1)
    broken = {name: np.zeros_like(wide(tensor)) for name, tensor in BASE.items() if name not in ("counter", "huge")}
    arrays = {name: from_float64(values, "F32").reshape(BASE[name].shape) for name, values in broken.items()}
    arrays["half"], arrays["wide"] = RawTensor("BF16", from_float64(broken["half"], "BF16")), np.full(5, np.nan)
    zero = sealed({name: arrays[name] for name in ("steady", "wild", "half", "wide")}, weight=1, number=6)
    noised = gaussian_sum(0.5, clipping_norm=2.0, num_elements=186, key=bytes(32))
    spec = RunSpec.model_validate({"strategy": {"weighting": "uniform"}})
    with begin([*updates[:4], zero], spec=spec, bound=2.0) as begun:
        whole = fold([*updates, zero], spec, noised=noised)
        assert fold([*updates, replace(zero, read=unreadable)], spec, noised=noised, begun=begun) == whole
        assert whole[1][1] == 6


def test_what_was_begun_is_not_read_again():
    updates = members(12, 2)
    with begin(updates[:8], (4,)) as begun:
        gone = [replace(one, read=unreadable) for one in updates[:8]]
        assert fold([*gone, *updates[8:]], begun=begun) == fold(updates)


def test_a_tensor_whose_guessed_grid_was_wrong_is_folded_again_and_no_other():
    """What is read again of the members is the tensor that grew, which is a smaller part of them than all others."""
    updates = members(9, 3)
    large = {"wild": np.full((4, 30), 1e9, dtype=np.float32)}
    arrays = {
        "steady": np.ones(50, dtype=np.float32) / 7,
        "half": RawTensor("BF16", from_float64(np.ones(11), "BF16")),
        "wide": np.ones(5) / 7,
    }
    late = sealed(arrays | large, weight=5, number=9)
    with begin(updates[:8]) as begun:
        num_bytes = []

        def counting(update):
            def read(begin, end):
                num_bytes.append(end - begin)
                return update.read(begin, end)

            return replace(update, read=read)

        found = fold([*(counting(one) for one in updates[:8]), updates[8], late], begun=begun)
        assert found == fold([*updates, late])
        assert sum(num_bytes) == 8 * 4 * 120


def test_the_grid_of_a_member_that_grows_the_sum_is_chosen_anew_while_it_is_begun():
    updates = members(8, 4, growth=1.0)
    with begin(updates, range(1, 8)) as begun:
        gone = [replace(one, read=unreadable) for one in updates]
        assert fold(gone, begun=begun) == fold(updates)


@pytest.mark.parametrize("change", ["weight", "delta_weight", "missing", "bound"])
def test_a_begun_sum_that_does_not_fit_is_left_alone(change):
    updates = members(8, 5)
    with begin(updates[:6]) as begun:
        if change == "missing":
            updates = updates[1:]
        elif change == "bound":
            begun.bound = 1.0
        else:
            value = {"weight": 7, "delta_weight": 0.5}[change]
            updates[2] = replace(updates[2], **{change: value})
        assert fold(updates, begun=begun) == fold(updates)


def test_batches_take_in_no_more_than_they_may():
    updates, sizes = members(8, 6), [0]
    with closing(Scratch(None)) as scratch:
        begun = BegunSum(scratch, None)
        while sizes[-1] < 8:
            add_batch(begun, updates, most=3, model=header(), spec=PLAIN)
            sizes.append(len(begun.members))
        assert [after - before for before, after in pairwise(sizes)] == [3, 3, 2]
        assert fold(updates, begun=begun) == fold(updates)


def test_a_scratch_file_that_is_short_is_not_taken_for_zeros():
    with closing(Scratch(None)) as scratch:
        scratch.write(0, np.arange(5))
        target = np.empty(5, dtype=np.int64)
        scratch.read(0, target)
        assert target.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(EOFError, match="no byte 40"):
            scratch.read(3, target)
