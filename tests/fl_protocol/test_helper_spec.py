"""Helper mode in a RunSpec: what it refuses and in which words, and what such a run promises."""

from typing import Any

import pytest
from pydantic import ValidationError

from fl_protocol.masked_vectors import ring_of
from fl_protocol.presets import preset_of, promise
from fl_protocol.runs import RunSpec
from fl_protocol.specs.secure_aggregation import target_members

HELPERS = [{"name": name, "sealing_key": name * 64, "signing_key": (name + "0") * 32} for name in "ab"]


def document(**changes: Any) -> dict[str, Any]:
    masked = {"kind": "helper", "helpers": HELPERS} | changes.pop("masked", {})
    return {"round": {"quorum": 8}, "secure_aggregation": masked} | changes


def test_the_ring_has_room_for_all_who_may_be_in_a_rounds_sum() -> None:
    spec = RunSpec.model_validate(document())
    assert target_members(spec) == ring_of(spec).max_members == 8
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    assert next(iter(spec.secure_aggregation.model_dump())) == "kind"


def test_what_such_a_run_promises_names_its_helpers() -> None:
    told = promise(RunSpec.model_validate(document()))
    assert preset_of(RunSpec.model_validate(document())) is None
    assert (told.preset, told.min_members, told.tolerated_colluders, told.identity_trust) == (None, 5, None, "pinned")
    assert "unless it works together with every one of the run's helpers (a, b)" in told.sentences[0]
    believing = promise(RunSpec.model_validate(document(masked={"identity_trust": "server"})))
    assert any("operator who invents clients" in sentence for sentence in believing.sentences)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masked": {"helpers": []}}, "at least 1"),
        ({"masked": {"helpers": HELPERS * 5}}, "at most 8"),
        ({"masked": {"helpers": [HELPERS[0], HELPERS[1] | {"name": "a"}]}}, "helpers.name 'a' is there twice"),
        ({"masked": {"helpers": [HELPERS[0], HELPERS[1] | {"sealing_key": "a" * 64}]}}, "helpers.sealing_key"),
        ({"masked": {"identity_trust": "ca"}}, "'server' or 'pinned'"),
        ({"masked": {"target_members": 5}}, "target_members"),
        ({"masked": {"min_members": 2}}, "greater than or equal to 3"),
        ({"masked": {"min_members": 9}}, "round.min_updates 8 must be at least secure_aggregation.min_members 9"),
        ({"round": {"kind": "buffered"}}, "needs round.kind 'synchronous'"),
        ({"strategy": {"kind": "median"}}, "under secure_aggregation.kind 'helper' a round has one sum"),
        ({"strategy": {"kind": "mean", "max_share": 0.5}}, "secure_aggregation.kind 'helper'"),
        ({"evaluation": {"every": 1}}, "secure_aggregation.kind 'helper'"),
        ({"algorithm": {"kind": "fednova"}}, "secure_aggregation.kind 'helper'"),
        (
            {
                "strategy": {"weighting": "uniform"},
                "privacy": {"kind": "distributed_skellam", "target_epsilon": 1.0, "delta": 1e-6, "clipping_norm": 1.0},
            },
            "goes only with secure_aggregation.kind 'pairwise'",
        ),
        (
            {
                "strategy": {"weighting": "uniform"},
                "privacy": {"kind": "local_laplace", "target_epsilon": 1.0, "clipping_norm": 1.0},
            },
            "take 'central_gaussian', 'central_blt'",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_the_fields_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        RunSpec.model_validate(document(**changes))
    assert message in str(refused.value)
