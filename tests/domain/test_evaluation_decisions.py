"""What follows from evaluations, against plain references: the best version, the end of a run, quarantine, strata."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_service.domain import standing as standings
from aggregator_service.domain.standing import Standing, judge
from aggregator_service.domain.strata import MAX_STRATA, by_stratum
from fl_protocol.specs.evaluation import EarlyStoppingSpec, EvaluationSpec, QuarantineSpec, TargetSpec
from tests.support.records import evaluation_record

VALUES = st.lists(st.integers(-20, 20).map(lambda number: number / 4), min_size=1, max_size=30)
MODES = st.sampled_from(["max", "min"])


def follow(spec, values):
    """Judges one evaluation after another; gives the standing after each and the versions that were left behind."""
    standing, course, condemned = Standing(), [], []
    for version, value in enumerate(values, start=1):
        verdict = judge(spec, standing, version=version, metrics={"m": value})
        standing = verdict.standing
        course.append(standing)
        condemned += [version] if verdict.is_quarantined else []
    return course, condemned


def oriented(values, mode):
    return [value if mode == "max" else -value for value in values]


@given(values=VALUES, mode=MODES)
def test_the_best_version_is_the_first_of_the_best_values(values, mode):
    spec = EvaluationSpec(every=1, early_stopping=EarlyStoppingSpec(metric="m", mode=mode, patience=1000))
    course, _ = follow(spec, values)
    for number in range(1, len(values) + 1):
        seen = oriented(values[:number], mode)
        assert course[number - 1].best.version == seen.index(max(seen)) + 1


@given(values=VALUES, mode=MODES, target=st.integers(-20, 20).map(lambda number: number / 4))
def test_a_run_ends_with_the_first_evaluation_at_its_target(values, mode, target):
    course, _ = follow(EvaluationSpec(every=1, target=TargetSpec(metric="m", mode=mode, value=target)), values)
    reached = [value >= target if mode == "max" else value <= target for value in values]
    ended = [standing.stop_reason is not None for standing in course]
    # Whoever ends a run judges nothing after it; until then nothing else may have ended it.
    first = reached.index(True) if True in reached else len(values)
    assert ended[: first + 1] == reached[: first + 1]


@given(values=VALUES, mode=MODES, patience=st.integers(1, 5), min_delta=st.integers(0, 8).map(lambda n: n / 4))
def test_patience_ends_as_a_plain_count_says(values, mode, patience, min_delta):
    bound = EarlyStoppingSpec(metric="m", mode=mode, patience=patience, min_delta=min_delta)
    course, _ = follow(EvaluationSpec(every=1, early_stopping=bound), values)
    best, stale, expected = None, 0, []
    for value in oriented(values, mode):
        if best is None or value > best + min_delta:
            best, stale = value, 0
        else:
            stale += 1
        expected.append(stale >= patience)
    first = expected.index(True) if True in expected else len(values)
    assert [standing.stop_reason is not None for standing in course][: first + 1] == expected[: first + 1]


@given(values=VALUES, mode=MODES, max_fall=st.integers(0, 20).map(lambda number: number / 4))
def test_versions_that_fall_too_far_below_the_best_are_left_behind_and_never_the_best(values, mode, max_fall):
    bound = QuarantineSpec(metric="m", mode=mode, max_fall=max_fall)
    course, condemned = follow(EvaluationSpec(every=1, quarantine=bound), values)
    seen = oriented(values, mode)
    expected = [n for n in range(1, len(seen) + 1) if n > 1 and max(seen[: n - 1]) - seen[n - 1] > max_fall]
    assert condemned == expected
    kept = [n for n in range(1, len(seen) + 1) if n not in expected]
    assert course[-1].guard.good_version == kept[-1]
    assert course[-1].best.version not in condemned


def test_a_slow_decline_is_seen_because_the_best_is_what_counts():
    spec = EvaluationSpec(every=1, quarantine=QuarantineSpec(metric="m", mode="max", max_fall=0.1))
    _, condemned = follow(spec, [0.9, 0.85, 0.8, 0.75])
    assert condemned == [4]


def test_a_version_left_behind_counts_as_one_that_helped_nothing():
    spec = EvaluationSpec(
        every=1,
        early_stopping=EarlyStoppingSpec(metric="m", mode="max", patience=2),
        quarantine=QuarantineSpec(metric="m", mode="max", max_fall=0.1),
    )
    course, condemned = follow(spec, [0.9, 0.5, 0.4])
    assert condemned == [2, 3]
    assert course[1].stop_reason is None
    assert "in 2 evaluations m was not better by more than 0 than 0.9 at version 1" in course[2].stop_reason


def test_a_version_left_behind_reaches_no_target():
    spec = EvaluationSpec(
        every=1,
        target=TargetSpec(metric="loss", mode="min", value=1.0),
        quarantine=QuarantineSpec(metric="m", mode="max", max_fall=0.1),
    )
    first = judge(spec, Standing(), version=1, metrics={"m": 0.9, "loss": 2.0})
    fallen = judge(spec, first.standing, version=2, metrics={"m": 0.1, "loss": 0.5})
    assert fallen.is_quarantined
    assert fallen.standing == first.standing


def test_a_metric_that_nobody_reported_decides_nothing():
    spec = EvaluationSpec(
        every=1,
        target=TargetSpec(metric="absent", mode="max", value=0),
        early_stopping=EarlyStoppingSpec(metric="absent", mode="max", patience=1),
        quarantine=QuarantineSpec(metric="absent", mode="max", max_fall=0),
    )
    course, condemned = follow(spec, [0.9, 0.1, 0.0])
    assert condemned == []
    assert course[-1] == Standing()


@given(values=VALUES, mode=MODES, cut=st.integers(0, 30))
def test_a_run_that_went_back_stands_where_it_stood_and_has_no_reason_to_stop(values, mode, cut):
    spec = EvaluationSpec(
        every=1,
        target=TargetSpec(metric="m", mode=mode, value=0),
        early_stopping=EarlyStoppingSpec(metric="m", mode=mode, patience=3, min_delta=0.5),
    )
    kept = values[:cut]
    found = standings.along(spec, [(number, {"m": value}) for number, value in enumerate(kept, start=1)])
    course, _ = follow(spec, kept)
    stood = course[-1] if course else Standing()
    assert (found.best, found.patience, found.guard, found.stop_reason) == (
        stood.best,
        stood.patience,
        stood.guard,
        None,
    )


@given(values=VALUES, mode=MODES)
def test_a_standing_comes_back_from_json(values, mode):
    spec = EvaluationSpec(
        every=1,
        target=TargetSpec(metric="m", mode=mode, value=0),
        early_stopping=EarlyStoppingSpec(metric="m", mode=mode, patience=1),
        quarantine=QuarantineSpec(metric="m", mode=mode, max_fall=1),
    )
    for standing in (Standing(), *follow(spec, values)[0]):
        assert standings.from_json(json.loads(json.dumps(standings.to_json(standing)))) == standing
    assert standings.from_json(None) == Standing()


def report(client_id, num_examples, **metrics):
    return evaluation_record(client_id, client_id=client_id, num_examples=num_examples, metrics=metrics)


def test_strata_are_weighted_by_examples_whatever_the_order():
    reports = [report("a", 1, loss=1.0), report("b", 3, loss=2.0), report("c", 5, loss=9.0, accuracy=0.5)]
    region = {"a": "north", "b": "north", "c": ""}
    found = by_stratum(reports, region)
    assert found == by_stratum(reversed(reports), region)
    assert list(found) == ["", "north"]
    north = found["north"]
    assert (north.num_examples, north.num_reports, north.metrics) == (4, 2, {"loss": 1.75})
    assert found[""].metrics == {"accuracy": 0.5, "loss": 9.0}


def test_only_the_largest_strata_are_kept():
    reports = [report(f"client-{number}", 1 + number, loss=0.0) for number in range(MAX_STRATA + 2)]
    found = by_stratum(reports, {one.client_id: one.client_id for one in reports})
    assert set(found) == {f"client-{number}" for number in range(2, MAX_STRATA + 2)}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_watched_metric_is_the_targets_then_early_stoppings_then_the_quarantines(mode):
    target = TargetSpec(metric="a", mode=mode, value=0)
    stopping = EarlyStoppingSpec(metric="b", mode=mode, patience=1)
    quarantine = QuarantineSpec(metric="c", mode=mode, max_fall=0)
    assert EvaluationSpec(target=target, early_stopping=stopping, quarantine=quarantine).watched == target
    assert EvaluationSpec(early_stopping=stopping, quarantine=quarantine).watched == stopping
    assert EvaluationSpec(quarantine=quarantine).watched == quarantine
    assert EvaluationSpec().watched is None
