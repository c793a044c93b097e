"""A plan's figures, its refusals and what it warns of."""

import json

import pytest

from aggregator_service.domain.server_optimizers import choice
from fl_protocol.planning import plan, sizes
from fl_protocol.planning.links import Link, parse_link
from fl_protocol.planning.plan import Conditions, Plan, plan_run
from fl_protocol.planning.sizes import model_of, num_arrays
from fl_protocol.runs import RunSpec


def spec(**fields: object) -> RunSpec:
    return RunSpec.model_validate_json(json.dumps(fields))


def planned(run: RunSpec, *, clients: int = 20, parameters: int = 1_000_000, largest: int = 1 << 30) -> Plan:
    line = Link(8e6, 0.5)
    conditions = Conditions(num_clients=clients, down=line, up=line, local_seconds=60, max_model_bytes=largest)
    return plan_run(run, model_of(parameters), conditions)


@pytest.mark.parametrize(
    ("text", "bits", "latency"),
    [("10Mbit/s", 1e7, 0), ("1.5MB/s:50ms", 1.2e7, 0.05), ("512 kbit/s:2s", 512e3, 2), ("9600bit/s", 9600, 0)],
)
def test_a_line_has_a_speed_and_a_latency(text: str, bits: float, latency: float) -> None:
    assert parse_link(text) == Link(bits, latency)


@pytest.mark.parametrize("text", ["", "10", "0Mbit/s", "-1Mbit/s", "10Mbit/s:", "10Mbit/s:50", "infMbit/s", "1e9bit/s"])
def test_what_is_no_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be like 10Mbit/s"):
        parse_link(text)


def test_bytes_and_seconds_add_up() -> None:
    made = planned(spec(num_rounds=5, round={"quorum": 8, "cohort_size": 10}, training={"max_seconds": 30}))
    traffic, times = made.traffic, made.times
    assert 4_000_000 < traffic.update.num_bytes < 4_000_500
    assert (traffic.received_a_round, traffic.received) == (
        10 * traffic.update.num_bytes,
        50 * traffic.update.num_bytes,
    )
    assert times.training == 30
    assert times.download == pytest.approx(1.0 + traffic.download.num_bytes / 1e6)
    assert times.upload == pytest.approx(0.5 + traffic.update.num_bytes / 1e6)
    assert times.round == pytest.approx(times.download + times.training + times.upload + times.aggregation)
    assert times.run == pytest.approx(5 * times.round)
    assert made.warnings == ()


def test_other_encodings_are_compared_where_they_go_with_the_run() -> None:
    ratios = {one.name: one.ratio for one in planned(spec(skipping={"kind": "norm", "below": 1})).alternatives}
    assert ratios["int8"] == pytest.approx(0.25, abs=1e-3)
    assert ratios["topk 0.01"] == pytest.approx(0.02, abs=1e-3)
    assert ratios["skipped"] < 1e-4
    robust = planned(spec(strategy={"kind": "median"})).alternatives
    assert [one.name for one in robust] == ["dense bfloat16", "int8", "int8 zstd", "int4"]


@pytest.mark.parametrize(
    ("run", "changes", "says"),
    [
        ({"round": {"quorum": 1, "deadline_seconds": 60}}, {}, "round.deadline_seconds is 60"),
        ({}, {"largest": 1000}, "FEDQUORUM_MAX_MODEL_BYTES"),
        ({"round": {"quorum": 8}}, {"clients": 7}, "none would complete"),
        ({"round": {"quorum": 8, "min_updates": 2}}, {"clients": 7}, "wait for its deadline"),
    ],
)
def test_what_speaks_against_a_plan_is_said(run: dict[str, object], changes: dict[str, int], says: str) -> None:
    warnings = planned(spec(**run), **changes).warnings
    assert [says in warning for warning in warnings] == [True]


@pytest.mark.parametrize(
    ("fields", "rounds", "versions"),
    [
        ({}, 100, 101),
        ({"retention": {"updates": {"kind": "until_published"}}}, 1, 101),
        ({"retention": {"updates": {"kind": "until_published", "rounds": 3}}}, 4, 101),
        ({"retention": {"updates": {"kind": "until_published", "rounds": 300}}}, 100, 101),
        ({"retention": {"models": {"kind": "newest", "count": 2}}}, 100, 4),
        ({"retention": {"models": {"kind": "newest", "count": 200}}}, 100, 101),
        (
            {
                "retention": {"models": {"kind": "newest", "count": 2}},
                "evaluation": {"every": 1, "quarantine": {"metric": "loss", "mode": "min", "max_fall": 1}},
            },
            100,
            6,
        ),
    ],
)
def test_a_plan_stores_what_retention_keeps(fields: dict[str, object], rounds: int, versions: int) -> None:
    run = spec(num_rounds=100, server_optimizer={"kind": "adam"}, **fields)
    stored = planned(run).storage
    updates, states = rounds * stored.updates_a_round, (versions - 1) * stored.optimizer_state
    assert stored.run == updates + versions * stored.model + states
    assert stored.optimizer_state == 2 * 8 * 1_000_000


def test_a_plan_names_what_it_assumes() -> None:
    assumed = {
        one.name: one.value
        for one in planned(spec(encoding={"kind": "int4", "compression": {"kind": "zstd"}})).assumptions
    }
    assert assumed["INTAKE_BYTES_PER_SECOND"] == plan.INTAKE_BYTES_PER_SECOND
    assert assumed["AGGREGATION_BYTES_PER_SECOND"] == plan.AGGREGATION_BYTES_PER_SECOND
    assert assumed["ZSTD_RATIOS[int4]"] == sizes.ZSTD_RATIOS["int4"]


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "sgd"},
        {"kind": "sgd", "momentum": 0.9},
        {"kind": "adagrad"},
        {"kind": "adagrad", "beta1": 0.9},
        {"kind": "adam"},
        {"kind": "yogi"},
    ],
)
def test_a_plan_stores_as_many_arrays_as_the_server(optimizer: dict[str, object]) -> None:
    run = spec(server_optimizer=optimizer)
    assert num_arrays(run) == len(choice.slots(run.server_optimizer))
