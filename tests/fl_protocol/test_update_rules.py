"""What an update must hold and say of itself, given the base model."""

import json

import pytest

from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.tensors import header_limit, parse_header, render_header
from fl_protocol.updates import (
    check_update_structure,
    max_update_bytes,
    update_header_limit,
    update_metadata,
)

MODEL = [("w", "F32", (2, 3)), ("h", "BF16", (4,)), ("n", "I64", ()), ("mask", "BOOL", (2,))]


def header(tensors, metadata=None):
    return parse_header(render_header(tensors, metadata or {})[8:])


@pytest.mark.parametrize("kept", [(0, 1), (1, 0), (0, 1, 2), (2, 1, 0)])
def test_order_is_free_and_integers_may_be_left_out(kept):
    check_update_structure(header([MODEL[at] for at in kept]), header(MODEL))


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ([MODEL[0]], "'h' is missing; BF16 of shape [4] is expected"),
        ([*MODEL[:2], ("../../x", "F32", ())], "'../../x' is not in the base model"),
        ([("w", "F32", (3, 2)), MODEL[1]], "'w' is F32 of shape [3, 2]; F32 of shape [2, 3] is expected"),
        ([("w", "F64", (2, 3)), MODEL[1]], "'w' is F64"),
        ([("w", "F32", (6,)), MODEL[1]], "'w' is F32 of shape [6]"),
        ([*MODEL[:2], ("n", "I32", ())], "'n' is I32"),
        ([*MODEL[:2], MODEL[3]], "'mask' is BOOL"),
        ([], "'w' is missing"),
    ],
)
def test_another_structure_is_refused_by_the_tensors_name(tensors, named):
    with pytest.raises(ProblemError) as caught:
        check_update_structure(header(tensors), header(MODEL))
    assert caught.value.problem_type is ProblemType.STRUCTURE_MISMATCH
    assert named in caught.value.detail


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("007", 7), ("9007199254740991", 2**53 - 1)])
def test_num_examples_is_read(text, number):
    metadata = update_metadata(header([], {"format": "pt", "num_examples": text, "other": "x"}))
    assert metadata.num_examples == number
    assert metadata.metrics == {}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "0",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1\n",
            "1.0",
            "1e3",
            "NaN",
            "true",
            '"5"',
            "0x5",
            "1_000",
            "\u0663",
            "\uff19",
        ),
        *("\u00b2", "9007199254740992", "1" * 17, "9" * 5000, "1000000000000000000"),
    ],
)
def test_any_other_num_examples_is_refused(text):
    with pytest.raises(ProblemError, match="invalid-metadata: num_examples"):
        update_metadata(header([], {"num_examples": text}))


def test_missing_num_examples_is_refused():
    with pytest.raises(ProblemError, match="num_examples is missing"):
        update_metadata(header([], {"metrics": "{}"}))


def test_metrics_are_read():
    text = '{"loss": 0.25, "steps": 12, "a/b.c": -1e-300}'
    metadata = update_metadata(header([], {"num_examples": "1", "metrics": text}))
    assert metadata.metrics == {"loss": 0.25, "steps": 12.0, "a/b.c": -1e-300}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "1", '{"a": NaN}', '{"a": Infinity}', '{"a": 1e999}', '{"a": true}', '{"a": "1"}'),
        *('{"a": null}', '{"a": 1, "a": 2}', '{"a": {}}', '{"": 1}', '{"\\u0000": 1}', '{"a": ' + "9" * 400 + "}"),
        *(json.dumps({f"m{i}": i for i in range(65)}), '{"' + "a" * 65 + '": 1}', '{"a": 1e301}', "[" * 50_000),
    ],
)
def test_any_other_metrics_are_refused(text):
    with pytest.raises(ProblemError, match="invalid-metadata: metrics"):
        update_metadata(header([], {"num_examples": "1", "metrics": text}))


def test_an_updates_size_is_bounded_by_its_model():
    model = header(MODEL)
    assert max_update_bytes(model) == 8 + header_limit(4) + 24 + 8 + 8
    long_names = header([(f"{at:0500d}", "F32", ()) for at in range(1000)])
    assert update_header_limit(long_names) >= long_names.data_start - 8 + (64 << 10)
