"""Name patterns: what they match, what they make of a model, and what is refused by the field's name."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import ScaffoldAlgorithm
from fl_protocol.specs.parameters import ParametersSpec, matches
from fl_protocol.tensors import parse_header, render_header
from fl_protocol.updates import check_model, check_update_structure, max_update_bytes, update_layout

MODEL = [
    ("base.weight", "F32", (1000, 1000)),
    ("base.bias", "F32", (1000,)),
    ("norm.weight", "F32", (4,)),
    ("norm.count", "I64", ()),
    ("lora.a", "F32", (4, 8)),
    ("lora.b", "BF16", (8,)),
]


def header(tensors):
    return parse_header(render_header(tensors, {})[8:])


def rules(trainable=("*",), personal=(), **fields):
    return RunSpec(parameters=ParametersSpec(trainable=list(trainable), personal=list(personal)), **fields)


@given(st.text("ab.*", max_size=8), st.text("ab.", max_size=12))
def test_a_star_stands_for_any_characters_and_nothing_else_is_special(pattern, name):
    expected = re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), name, re.DOTALL)
    assert matches(pattern, name) == (expected is not None)


def test_a_hostile_pattern_costs_no_more_than_its_length():
    started = time.perf_counter()
    assert not matches("*a" * 200 + "b", "a" * 512)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"trainable": []}, "trainable"),
        ({"trainable": [""]}, "trainable.0"),
        ({"trainable": ["x" * 513]}, "trainable.0"),
        ({"trainable": ["a\n"]}, "trainable.0"),
        ({"trainable": ["x"] * 257}, "trainable"),
        ({"personal": ["a", "**"]}, "personal matches every tensor, so that nothing would travel"),
        ({"personal": ["x" * 500] * 40}, "take 20001 bytes together; at most 16384"),
        ({"frozen": ["x"]}, "frozen"),
    ],
)
def test_patterns_that_cannot_be_are_refused_when_the_run_is_created(document, message):
    with pytest.raises(ValidationError, match=message):
        RunSpec.model_validate({"parameters": document})


def test_a_spec_without_parameters_trains_everything_and_defaults_are_not_shared():
    assert RunSpec.model_validate({}).parameters == ParametersSpec(trainable=["*"], personal=[])
    ParametersSpec().personal.append("x")
    assert ParametersSpec().personal == []
    model = header(MODEL)
    assert update_layout(model, RunSpec()) is model


def test_only_what_is_trainable_and_not_personal_travels_and_is_paid_for():
    model = header(MODEL)
    layout = update_layout(model, rules(["lora.*", "norm.*"], ["norm.w*"]))
    assert [spec.name for spec in layout.tensors] == ["norm.count", "lora.a", "lora.b"]
    assert max_update_bytes(model) > 4_000_000
    assert max_update_bytes(layout) < 70_000
    check_update_structure(header(MODEL[4:]), layout)
    for tensors, message in [
        (MODEL[4:5], "'lora.b' is missing"),
        (MODEL[2:3] + MODEL[4:], "'norm.weight' is not in the base model or does not travel"),
        (MODEL[1:2] + MODEL[4:], "'base.bias' is not in the base model or does not travel"),
    ]:
        with pytest.raises(ProblemError, match=message):
            check_update_structure(header(tensors), layout)


def test_control_variates_belong_to_what_travels():
    layout = update_layout(header(MODEL), rules(["lora.*"], algorithm=ScaffoldAlgorithm(num_clients=10)))
    assert [spec.name for spec in layout.tensors] == ["lora.a", "lora.b", "control:lora.a", "control:lora.b"]
    assert [(spec.begin, spec.end) for spec in layout.tensors] == [(0, 128), (128, 144), (144, 272), (272, 304)]


@pytest.mark.parametrize(
    ("trainable", "personal", "message"),
    [
        (
            ["base.*", "lora2.*"],
            [],
            "parameters.trainable[1] 'lora2.*' matches no tensor of the model; it has: 'base.weight', 'base.bias'",
        ),
        (["*"], ["norm.weight", "bn.*"], "parameters.personal[1] 'bn.*' matches no tensor"),
        (["lora.*"], ["lora*"], "holds no floating-point tensor to train that travels by the run's parameters"),
        (["norm.count"], [], "holds no floating-point tensor to train that travels"),
    ],
)
def test_a_model_that_does_not_fit_the_patterns_is_refused_by_name(trainable, personal, message):
    with pytest.raises(ProblemError, match=re.escape(message)) as refused:
        check_model(header(MODEL), rules(trainable, personal))
    assert refused.value.problem_type == "structure-mismatch"


def test_a_large_model_is_named_in_part():
    many = header([(f"layer.{at}", "F32", (1,)) for at in range(40)])
    with pytest.raises(ProblemError, match=r"'layer.11', and 28 more$"):
        check_model(many, rules(["x"]))


def test_a_model_that_fits_is_accepted():
    check_model(header(MODEL), rules(["lora.*", "base.bias"], ["norm.*"]))
