"""What an update of a SCAFFOLD run may hold beside the model's tensors."""

import pytest

from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import ScaffoldAlgorithm
from fl_protocol.tensors import parse_header, render_header
from fl_protocol.updates import (
    check_update_structure,
    control_tensors,
    max_update_bytes,
    update_header_limit,
    update_layout,
)

MODEL = [
    ("w", "F32", (2, 3)),
    ("wide", "F64", (2,)),
    ("half", "BF16", (4,)),
    ("count", "I64", ()),
    ("mask", "BOOL", (2,)),
]
CONTROLS = [("control:w", "F32", (2, 3)), ("control:wide", "F64", (2,)), ("control:half", "F32", (4,))]
SCAFFOLD = RunSpec(algorithm=ScaffoldAlgorithm(num_clients=20))


def header(tensors, metadata=None):
    return parse_header(render_header(tensors, metadata or {})[8:])


def test_without_scaffold_an_update_holds_what_the_model_holds():
    model = header(MODEL)
    assert update_layout(model, RunSpec()) is model


def test_scaffold_adds_a_control_variate_for_each_floating_point_tensor():
    layout = update_layout(header(MODEL), SCAFFOLD)
    assert [(spec.name, spec.dtype, spec.shape) for spec in layout.tensors] == MODEL + CONTROLS
    assert [(spec.name, spec.dtype, spec.shape) for spec in control_tensors(layout)] == CONTROLS
    check_update_structure(header(CONTROLS + MODEL[:3]), layout)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (MODEL[:3] + CONTROLS[1:], "'control:w' is missing"),
        (MODEL[:3] + CONTROLS + [("control:count", "F32", ())], "'control:count' is not in the base model"),
        ([*MODEL[:3], ("control:w", "F32", (3, 2)), *CONTROLS[1:]], r"'control:w' is F32 of shape \[3, 2\]"),
        (MODEL[:3] + CONTROLS[:2] + [("control:half", "BF16", (4,))], "'control:half' is BF16"),
    ],
)
def test_control_variates_are_checked_by_name(tensors, message):
    with pytest.raises(ProblemError, match=message):
        check_update_structure(header(tensors), update_layout(header(MODEL), SCAFFOLD))


def test_a_model_with_the_reserved_prefix_is_refused():
    with pytest.raises(ProblemError, match="'control:w' begins with 'control:'"):
        update_layout(header([("control:w", "F32", (1,))]), SCAFFOLD)
    with pytest.raises(ProblemError, match="name of 505 characters"):
        update_layout(header([("n" * 505, "F32", (1,))]), SCAFFOLD)
    update_layout(header([("n" * 504, "F32", (1,))]), SCAFFOLD)


def test_a_whole_update_fits_its_bound_whatever_the_names():
    many = [(f"block.{at}.{'é' * 400}", "F32", (2,)) for at in range(300)]
    for tensors in (MODEL, many):
        layout = update_layout(header(tensors, {"note": "x" * 5000}), SCAFFOLD)
        both = [(spec.name, spec.dtype, spec.shape) for spec in layout.tensors if spec.dtype != "BOOL"]
        update = header(both, {"num_examples": "1"})
        assert update.data_start - 8 <= update_header_limit(layout)
        assert update.num_bytes <= max_update_bytes(layout)
