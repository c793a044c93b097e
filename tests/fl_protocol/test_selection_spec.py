"""A selection or weighting that cannot work is refused when the run is created: its field, its value, the bound."""

import json

import pytest
from pydantic import ValidationError

from fl_protocol.faults import describe_fault
from fl_protocol.runs import RunSpec
from fl_protocol.specs.selection import OpenSelection, PoissonSelection, fixed_denominator, most_updates
from tests.docs.pages import CHECKOUT, blocks

EVEN = {"weighting": "uniform"}


def refusal(document: dict[str, object]) -> str:
    """Gives the words in which the API and the command line refuse a specification."""
    with pytest.raises(ValidationError) as refused:
        RunSpec.model_validate_json(json.dumps(document))
    return describe_fault(refused.value.errors()[0], document)


def poisson(probability: float, population: int | None, **others: object) -> dict[str, object]:
    selection = {"kind": "poisson", "probability": probability, "population": population}
    return {"selection": selection, "strategy": EVEN, "round": {"quorum": 4}} | others


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (
            poisson(0.1, 30),
            (
                "selection.probability 0.1 of selection.population 30 chooses 3 clients a round on average; "
                "round.min_updates 4 needs at least as many"
            ),
        ),
        (
            poisson(0.5, 10_000),
            (
                "selection.probability 0.5 of selection.population 10000 chooses 5000 clients a round on average and "
                "up to 5300 (six standard deviations more); at most 4096 may take part"
            ),
        ),
        (
            poisson(0.5, 40, strategy={"weighting": "num_examples"}),
            (
                "the fixed denominator that selection.population gives divides a plain sum of updates; "
                "it needs strategy.kind 'mean' with strategy.weighting 'uniform'"
            ),
        ),
        (
            poisson(0.5, 40, strategy={"kind": "median"}),
            (
                "the fixed denominator that selection.population gives divides a plain sum of updates; "
                "it needs strategy.kind 'mean' with strategy.weighting 'uniform'"
            ),
        ),
        (
            poisson(0.5, 40, algorithm={"kind": "fednova"}),
            (
                "the fixed denominator that selection.population gives divides a plain sum of updates; "
                "algorithm.kind 'fednova' has a denominator of its own; leave the population out"
            ),
        ),
        (
            {"selection": {"kind": "poisson", "probability": 0.5}, "strategy": {"kind": "krum", "num_byzantine": 1}},
            (
                "strategy.kind krum compares each update with every other one, and a round may close with 4096 "
                "updates; at most 1024 can be compared"
            ),
        ),
        (
            {"round": {"quorum": 8, "min_updates": 4}, "strategy": {"max_share": 0.2}},
            (
                "strategy.max_share 0.2 cannot hold: of round.min_updates 4 updates one has at least 1/4 of the total "
                "weight; allow at least that much"
            ),
        ),
        (
            {"selection": {"kind": "uniform", "attribute": "region"}},
            "selection.attribute: Extra inputs are not permitted",
        ),
        ({"selection": {"kind": "poisson", "probability": 0.5, "seed": 1}}, "selection.seed: Extra inputs are not"),
        ({"selection": {"kind": "poisson"}}, "selection.probability: Field required"),
        ({"selection": {"kind": "poisson", "probability": 1.5}}, "selection.probability: Input should be less than or"),
        ({"selection": {"kind": "stratified"}}, "selection.attribute: Field required"),
        (
            {"selection": {"kind": "stratified", "attribute": "region", "allocation": "fair"}},
            "selection.allocation: Input should be 'proportional' or 'equal'",
        ),
        (
            {"selection": {"kind": "random"}},
            "selection.kind: 'random' is none of 'open', 'uniform', 'poisson', 'stratified'",
        ),
        ({"selection": {"eligibility": {"region": []}}}, "selection.eligibility.region: List should have at least 1"),
        ({"selection": {"min_separation": -1}}, "selection.min_separation: Input should be greater than or equal to 0"),
        ({"selection": {"max_participations": 0}}, "selection.max_participations: Input should be greater than or"),
        (
            {"selection": {"kind": "uniform", "seen_within_seconds": 9}},
            "selection.seen_within_seconds: Input should be greater than or equal to 10",
        ),
        ({"selection": {"kind": "uniform", "seed": 2**53}}, "selection.seed: Input should be less than or equal to"),
        (
            {"strategy": {"weighting": {"kind": "inverse_stratum_size"}}},
            "strategy.weighting.attribute: Field required",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_its_name(document: dict[str, object], says: str) -> None:
    assert refusal(document).startswith(says)


def test_what_can_just_work_is_accepted() -> None:
    for document in (
        poisson(0.1, 40),
        poisson(0.2, 18_000),
        poisson(1.0, 4096),
        poisson(0.001, None, strategy={}),
        {"round": {"quorum": 8, "min_updates": 5}, "strategy": {"max_share": 0.2}},
    ):
        RunSpec.model_validate_json(json.dumps(document))


def test_the_fixed_denominator_is_how_many_coins_come_up_on_average() -> None:
    assert fixed_denominator(PoissonSelection(probability=0.05, population=2000)) == 100
    assert fixed_denominator(PoissonSelection(probability=0.05)) is None
    assert fixed_denominator(OpenSelection()) is None


def test_a_round_of_coins_may_close_with_as_many_as_there_is_room_for() -> None:
    spec = RunSpec()
    assert most_updates(PoissonSelection(probability=0.05), spec.round) == 4096
    assert most_updates(OpenSelection(), spec.round) == 8


def test_the_refusals_on_the_pages_are_the_servers() -> None:
    expected = {
        "selection.md": [
            poisson(0.1, 30),
            poisson(0.5, 10_000),
            poisson(0.5, 40, strategy={}),
            poisson(0.5, 40, algorithm={"kind": "fednova"}),
            {"selection": {"kind": "random"}},
        ],
        "weighting.md": [
            {"round": {"quorum": 8, "min_updates": 4}, "strategy": {"max_share": 0.2}},
            {"strategy": {"weighting": {"kind": "inverse_stratum_size"}}},
        ],
    }
    for page, documents in expected.items():
        shown = [each.text.splitlines() for each in blocks(CHECKOUT / "docs" / "learning" / page)]
        assert [refusal(document) for document in documents] in shown, page
