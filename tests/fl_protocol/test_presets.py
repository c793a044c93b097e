"""Presets: what each promises, with a run's own numbers, and that a name is given only to what deserves it."""

from typing import Any

import pytest

from client_sdk.cli.privacy_tables import DEFAULT_DELTA
from client_sdk.cli.promises import PresetName
from fl_protocol import presets
from fl_protocol.masking.graph import graph_of
from fl_protocol.presets import BUDGETED, EXPANSIONS, Preset, matrix, preset_of, promise
from fl_protocol.promises import colluders_of
from fl_protocol.runs import RunSpec

CENTRAL = {"kind": "central_gaussian", "target_epsilon": 4.0, "delta": 1e-6}
SKELLAM = CENTRAL | {"kind": "distributed_skellam"}
UNIFORM = {"kind": "mean", "weighting": "uniform"}


def spec_of(preset: Preset, **changes: Any) -> RunSpec:
    """Expands a preset; `changes` are of its parts."""
    parts = {part: dict(fields) for part, fields in EXPANSIONS[preset].items()}
    if preset in BUDGETED:
        parts["privacy"]["target_epsilon"] = 4.0
    for part, fields in changes.items():
        parts[part] = parts.get(part, {}) | fields
    return RunSpec.model_validate(parts)


def told(preset: Preset, **changes: Any) -> str:
    return " ".join(promise(spec_of(preset, **changes)).sentences)


@pytest.mark.parametrize("preset", Preset)
def test_an_expansion_is_the_preset(preset: Preset) -> None:
    spec = spec_of(preset)
    assert preset_of(spec) is preset
    assert promise(spec).preset == preset
    assert preset_of(RunSpec.model_validate_json(spec.model_dump_json())) is preset


@pytest.mark.parametrize("preset", sorted(BUDGETED))
def test_no_budget_has_a_default(preset: Preset) -> None:
    with pytest.raises(ValueError, match="target_epsilon"):
        RunSpec.model_validate({part: dict(fields) for part, fields in EXPANSIONS[preset].items()})


@pytest.mark.parametrize(
    "spec",
    [
        {"privacy": CENTRAL, "strategy": UNIFORM},
        {"privacy": {"kind": "example_dpsgd", "target_epsilon": 4.0, "delta": 1e-6}},
        *(
            {
                "privacy": SKELLAM,
                "strategy": UNIFORM,
                "secure_aggregation": {"kind": "pairwise", "identity_trust": trust},
            }
            for trust in ("server", "tofu", "ca")
        ),
    ],
    ids=["central-without-masks", "dpsgd", "shared-server", "shared-tofu", "shared-ca"],
)
def test_what_is_no_preset_has_no_name_and_still_sentences(spec: dict[str, Any]) -> None:
    found = promise(RunSpec.model_validate(spec))
    assert found.preset is None
    assert found.sentences


def test_nothing_is_called_private_that_shows_updates_or_sums() -> None:
    assert "anyone with its database sees every update. Updates can reveal training data." in told(Preset.OPEN)
    assert "The sum itself may reveal information." in told(Preset.SHIELDED)
    for preset in (Preset.OPEN, Preset.SHIELDED):
        assert "private" not in told(preset)
        assert "published models promise nothing" in told(preset)
    assert "private" not in " ".join(word for row in matrix()[:2] for word in row.sentences)


def test_the_numbers_are_the_runs_own() -> None:
    round_ = {"quorum": 18, "cohort_size": 20, "min_updates": 12}
    found = told(Preset.PRIVATE, round=round_, secure_aggregation={"min_members": 12}, privacy={"delta": 2.5e-7})
    assert "a session of at least 12 clients (and who took part)" in found
    assert f"at most {graph_of(12).tolerated_colluders} of a session's members" in found
    assert "The published models are (epsilon 4, delta 2.5e-07)-differentially private" in found
    assert "trusted to add the noise; it sees exact session sums" in found


def test_a_budget_is_never_rounded() -> None:
    assert "(epsilon 0.123456789, delta" in told(Preset.PRIVATE, privacy={"target_epsilon": 0.123456789})
    assert "(epsilon 4)-differentially" in told(Preset.LOCAL)


def test_colluders_are_those_that_every_size_of_a_session_tolerates() -> None:
    for fewest in range(3, 13):
        spec = spec_of(Preset.SHIELDED, round={"quorum": 30}, secure_aggregation={"min_members": fewest})
        found, graphs = colluders_of(spec), [graph_of(size) for size in range(fewest, 31)]
        assert found.tolerated == min(graph.tolerated_colluders for graph in graphs) >= 1
        stayed = min(max(fewest, graph.quorum) for graph in graphs)
        assert found.num_hidden == stayed - found.tolerated >= 2
        assert promise(spec).tolerated_colluders == found.tolerated


def test_a_sparse_graph_is_not_passed_off_as_a_complete_one() -> None:
    large = {"min_members": 100, "target_members": 400}
    found = told(Preset.SHIELDED, round={"quorum": 400}, secure_aggregation=large)
    assert "In sessions of more than 128 members each masks with a part of the others: up to 10% of them" in found
    assert "at most 12 of a session's members" in found
    assert "128" not in told(Preset.SHIELDED, round={"quorum": 128})


@pytest.mark.parametrize("trust", ["server", "tofu"])
def test_without_identities_of_their_own_clients_are_told_whom_masks_do_not_stop(trust: str) -> None:
    found = told(Preset.SHIELDED, secure_aggregation={"identity_trust": trust})
    assert f"(identity_trust {trust})" in found
    assert "protects against a passive operator, a stolen database, backup or log" in found
    assert "not against an operator who invents clients" in found
    noised = told(Preset.STRICT, secure_aggregation={"identity_trust": trust})
    assert "Clients that the operator invents add none: against that operator this does not hold." in noised


@pytest.mark.parametrize("trust", ["pinned", "ca"])
def test_with_identities_from_elsewhere_the_operator_cannot_invent_clients(trust: str) -> None:
    found = told(Preset.STRICT, secure_aggregation={"identity_trust": trust})
    assert f"(identity_trust {trust})" in found
    assert "the operator cannot invent clients" in found
    assert "passive" not in found
    assert "if at least 0.9 of the clients in each sum are real" in found


def test_each_message_of_a_local_run_is_what_is_protected() -> None:
    for changes in ({}, {"kind": "local_gaussian", "delta": 1e-6}):
        found = told(Preset.LOCAL, privacy=changes)
        assert "each message itself is differentially private" in found
        assert "against everyone, the operator too" in found
        assert "very noisy" in found


def test_the_command_line_knows_the_same_names_and_the_same_delta() -> None:
    assert [*PresetName] == [*map(str, Preset)]
    assert DEFAULT_DELTA == presets.DEFAULT_DELTA
