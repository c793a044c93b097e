"""Whatever a specification may ask for, the sums of its sessions fit into a ring."""

import itertools

import pytest

from fl_protocol.masked_vectors import ring_of
from fl_protocol.runs import RunSpec
from fl_protocol.specs.secure_aggregation import MAX_SESSION_MEMBERS

EXTREMES = list(
    itertools.product((3, MAX_SESSION_MEMBERS), (1, 255), (1e-9, 1e9), (0, 16), ("num_examples", "uniform"))
)


@pytest.mark.parametrize(("members", "weight", "largest", "metrics", "weighting"), EXTREMES)
def test_no_valid_specification_needs_more_than_64_bits(
    members: int, weight: int, largest: float, metrics: int, weighting: str
) -> None:
    masked = {
        "kind": "pairwise",
        "min_members": 3,
        "target_members": members,
        "max_weight": weight,
        "max_abs_delta": largest,
        "metrics": {f"m{number}": {"max_abs": 1e6} for number in range(metrics)},
    }
    rounds = {"quorum": members, "cohort_size": members}
    strategy = {"kind": "mean", "weighting": weighting}
    spec = RunSpec.model_validate({"name": "x", "round": rounds, "strategy": strategy, "secure_aggregation": masked})
    ring = ring_of(spec)
    assert ring.bits <= 64
    assert 0 < ring.step < largest
