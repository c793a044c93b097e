"""Skipping is a choice of the RunSpec; what does not go with it is refused by its field's name."""

import json

import pytest
from pydantic import ValidationError

from fl_protocol.faults import describe_fault
from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.specs.skipping import NormSkipping, NoSkipping
from fl_protocol.tensors import parse_header, render_header
from fl_protocol.updates import is_skipped

NORM = {"kind": "norm", "below": 0.01}


def spec(**fields):
    return RunSpec.model_validate_json(json.dumps(fields))


def refusal(**fields):
    with pytest.raises(ValidationError) as caught:
        spec(**fields)
    return describe_fault(caught.value.errors()[0], fields)


def header(metadata, *tensors):
    return parse_header(render_header(tensors, metadata)[8:])


def test_skipping_is_off_unless_a_run_asks_for_it():
    assert spec().skipping == NoSkipping()
    assert spec(skipping=NORM).skipping == NormSkipping(below=0.01)


@pytest.mark.parametrize(
    "chosen",
    [
        {
            "privacy": {"kind": "central_gaussian", "clipping_norm": 1.0, "target_epsilon": 8.0, "delta": 1e-5},
            "strategy": {"weighting": "uniform"},
        },
        {"strategy": {"kind": "median"}},
        {"algorithm": {"kind": "scaffold", "num_clients": 100}},
        {
            "secure_aggregation": {"kind": "pairwise"},
        },
    ],
    ids=lambda chosen: next(iter(chosen)),
)
def test_what_skipping_does_not_go_with_is_named(chosen):
    spec(**chosen)
    field, value = next(iter(chosen.items()))
    said = refusal(skipping=NORM, **chosen)
    assert f"{field}.kind '{value['kind']}'" in said


@pytest.mark.parametrize("below", [0, -1, 1e31, None, "1"])
def test_a_bound_that_is_none_is_refused(below):
    assert "below" in refusal(skipping={"kind": "norm", "below": below})


def test_an_update_is_skipped_if_the_run_allows_it_and_it_holds_nothing():
    allowed, told = NormSkipping(below=1.0), {"skipped": "true"}
    assert is_skipped(header(told), allowed)
    assert not is_skipped(header({}), allowed)
    assert not is_skipped(header(told, ("w", "F32", (2,))), NoSkipping())
    for metadata, tensors, skipping, says in [
        (told, (), NoSkipping(), "skipping.kind is 'none'"),
        ({"skipped": "yes"}, (), allowed, "'yes'"),
        (told, [("w", "F32", (2,))], allowed, "tensor 'w'"),
    ]:
        with pytest.raises(ProblemError, match=says):
            is_skipped(header(metadata, *tensors), skipping)
