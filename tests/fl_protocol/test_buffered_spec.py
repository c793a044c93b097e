"""Buffered rounds are a choice of the RunSpec's `round`; what does not go with them is refused by its field's name."""

import json

import pytest
from pydantic import ValidationError

from fl_protocol.faults import describe_fault
from fl_protocol.runs import RunSpec
from fl_protocol.specs.rounds import BufferedRoundSpec, RoundSpec
from fl_protocol.specs.staleness import ConstantStaleness, HingeStaleness, PolynomialStaleness

BUFFERED = {"kind": "buffered", "buffer_size": 8}
CONSTANT = BUFFERED | {"staleness": {"kind": "constant"}}
STRATIFIED = {"kind": "stratified", "attribute": "region", "allocation": "equal"}
QUARANTINE = {"metric": "accuracy", "mode": "max", "max_fall": 0.1}


def spec(**fields):
    return RunSpec.model_validate_json(json.dumps(fields))


def refusal(**fields):
    with pytest.raises(ValidationError) as caught:
        spec(**fields)
    return describe_fault(caught.value.errors()[0], fields)


def test_a_round_without_a_kind_is_synchronous_as_before():
    assert isinstance(spec(round={"quorum": 3}).round, RoundSpec)
    assert spec().round.kind == "synchronous"


def test_a_buffered_round_has_these_defaults():
    assert spec(round={"kind": "buffered"}).round == BufferedRoundSpec(
        buffer_size=10,
        concurrency=20,
        max_staleness=20,
        staleness=PolynomialStaleness(exponent=0.5),
        deadline_seconds=600,
    )
    assert spec(round=BUFFERED | {"buffer_size": 4000}).round.concurrency == 4096


@pytest.mark.parametrize(
    ("staleness", "expected"),
    [
        ({}, PolynomialStaleness(exponent=0.5)),
        ({"exponent": 1}, PolynomialStaleness(exponent=1)),
        ({"kind": "constant"}, ConstantStaleness()),
        ({"kind": "hinge", "slope": 10}, HingeStaleness(slope=10, threshold=4)),
    ],
)
def test_staleness_is_a_choice(staleness, expected):
    assert spec(round=BUFFERED | {"staleness": staleness}).round.staleness == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"buffer_size": 0}, "round.buffer_size: Input should be greater than or equal to 1"),
        ({"buffer_size": 4097}, "round.buffer_size: Input should be less than or equal to 4096"),
        ({"concurrency": 0}, "round.concurrency: Input should be greater than or equal to 1"),
        ({"max_staleness": -1}, "round.max_staleness: Input should be greater than or equal to 0"),
        ({"deadline_seconds": 0}, "round.deadline_seconds: Input should be greater than or equal to 0.1"),
        ({"staleness": {"exponent": 0}}, "round.staleness.exponent: Input should be greater than 0"),
        ({"staleness": {"kind": "hinge", "slope": 0}}, "round.staleness.slope: Input should be greater than 0"),
        ({"staleness": {"kind": "linear"}}, "round.staleness.kind: 'linear' is none of 'polynomial'"),
        ({"quorum": 8}, "round.quorum"),
        ({"kind": "sometimes"}, "round.kind: 'sometimes' is none of 'synchronous', 'buffered'"),
    ],
)
def test_a_wrong_field_is_named_with_its_bound(changes, says):
    assert says in refusal(round=BUFFERED | changes)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"selection": {"kind": "uniform"}}, "selection.kind 'uniform' needs synchronous rounds"),
        ({"selection": {"kind": "poisson", "probability": 0.5}}, "selection.kind 'poisson' needs synchronous rounds"),
        ({"selection": STRATIFIED}, "selection.kind 'stratified' needs synchronous rounds: a buffer has no cohort"),
        ({"algorithm": {"kind": "scaffold", "num_clients": 100}}, "algorithm.kind 'scaffold' needs synchronous rounds"),
        ({"algorithm": {"kind": "fednova"}}, "algorithm.kind 'fednova' needs synchronous rounds"),
        ({"evaluation": {"every": 1, "quarantine": QUARANTINE}}, "evaluation.quarantine needs synchronous rounds"),
        ({"strategy": {"kind": "median"}}, "round.staleness.kind 'polynomial' discounts the terms of a sum, and"),
        ({"strategy": {"kind": "geometric_median"}}, "strategy.kind 'geometric_median' is none; take 'constant'"),
    ],
)
def test_what_needs_a_cohort_that_starts_together_is_refused(fields, says):
    assert says in refusal(round=BUFFERED, **fields)
    spec(round={"quorum": 8}, **fields)


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ({"kind": "krum", "num_byzantine": 3}, "needs at least 2 * num_byzantine + 3 = 9 updates for krum"),
        ({"kind": "trimmed_mean", "trim_fraction": 0.1}, "strategy.trim_fraction 0.1 leaves out none of the 8 updates"),
        ({"max_share": 0.1}, "strategy.max_share 0.1 cannot hold: of round.buffer_size 8 updates"),
    ],
)
def test_a_strategy_must_work_with_a_full_buffer(strategy, says):
    found = refusal(round=CONSTANT, strategy=strategy)
    assert says in found
    assert "round.buffer_size" in found


@pytest.mark.parametrize(
    "fields",
    [
        {"selection": {"eligibility": {"region": ["north"]}, "min_separation": 2, "max_participations": 5}},
        {"strategy": {"weighting": "uniform", "max_update_norm": {"kind": "clip", "norm": 1.0}}},
        {"strategy": {"max_share": 0.5}},
        {"strategy": {"kind": "median"}},
        {"strategy": {"kind": "bulyan", "num_byzantine": 1}},
        {"server_optimizer": {"kind": "adam", "schedule": {"kind": "cosine", "num_rounds": 10}}},
        {"parameters": {"trainable": ["head.*"]}},
        {"training": {"proximal_mu": 0.1}},
        {"evaluation": {"every": 1, "target": {"metric": "accuracy", "mode": "max", "value": 0.9}}},
    ],
)
def test_everything_else_works(fields):
    spec(round=CONSTANT, **fields)
