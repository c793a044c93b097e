"""A skipped update counts as zero with its weight, and its bytes are never read."""

from contextlib import closing

import numpy as np
import pytest

from aggregator_service.flow.begun_sums import BegunSum, Scratch
from aggregator_service.flow.eager import add_batch
from aggregator_service.flow.fold import SealedUpdate
from fl_protocol.arrays import decode
from fl_protocol.runs import RunSpec
from fl_protocol.tensors import parse_header
from tests.domain.test_fold import blob_of, run, sealed

BASE = {"w": np.arange(5, dtype=np.float32), "counter": np.array([3])}
CLIPPED = RunSpec.model_validate({"strategy": {"kind": "mean", "max_update_norm": {"kind": "clip", "norm": 0.5}}})


def unreadable(begin, end):
    raise AssertionError(f"the bytes {begin}..{end} of a skipped update are read")


def skipped(weight, identity="s"):
    return SealedUpdate(identity, "sha256:" + "1" * 64, weight, {"w": 0.0}, unreadable, skipped=True)


def update(weight, identity="u", *, value=1.0):
    return sealed({"w": np.full(5, value, dtype=np.float32), "counter": np.array([4])}, weight, identity)


def test_its_weight_divides_and_its_delta_is_zero():
    model, _ = run(blob_of(BASE), [update(6), skipped(2)])
    assert decode(model)["w"].tolist() == [0.75, 1.75, 2.75, 3.75, 4.75]
    # A counter is as if it had been left out.
    assert decode(model)["counter"].tolist() == [7]


@pytest.mark.parametrize("chosen", [RunSpec(), CLIPPED], ids=["plain", "clipped"])
def test_a_round_in_which_all_skip_leaves_the_model(chosen):
    model, _ = run(blob_of(BASE), [skipped(1, "a"), skipped(2, "b")], chosen)
    assert {name: one.tolist() for name, one in decode(model).items()} == {
        name: one.tolist() for name, one in BASE.items()
    }


@pytest.mark.parametrize("num_begun", [1, 4, 5])
def test_a_begun_sum_holds_it_to_the_same_bits(num_begun):
    updates = [update(3, "a", value=0.3), skipped(2, "b"), update(7, "c", value=1e6), skipped(1, "d"), update(1, "e")]
    base, spec = blob_of(BASE), RunSpec()
    whole = run(base, updates)
    with closing(Scratch(None)) as scratch:
        begun = BegunSum(scratch, None)
        model = parse_header(base[8 : 8 + int.from_bytes(base[:8], "little")])
        add_batch(begun, updates[:num_begun], most=num_begun, model=model, spec=spec)
        assert run(base, updates, begun=begun) == whole
