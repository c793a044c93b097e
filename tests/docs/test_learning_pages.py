"""The pages on learning: what they show as a RunSpec is one, and what they say is refused is refused in these words."""

import json

import pytest
from pydantic import ValidationError

from fl_protocol.faults import describe_fault
from fl_protocol.runs import RunSpec
from tests.docs.pages import CHECKOUT, blocks

PAGES = sorted((CHECKOUT / "docs" / "learning").glob("*.md"))
SPECS = [
    pytest.param(document, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, document in enumerate(json.loads(each.text) for each in blocks(page) if each.language == "json")
    if document.keys() <= RunSpec.model_fields.keys()
]
TARGET = {"metric": "accuracy", "mode": "max", "value": 0.9}
REFUSED = [
    {"evaluation": {"target": TARGET}},
    {"evaluation": {"every": 3, "early_stopping": {"metric": "loss", "mode": "min", "patience": 3}}},
    {"evaluation": {"every": 6, "quarantine": {"metric": "accuracy", "mode": "max", "max_fall": 0.1}}},
    {"round": {"quorum": 8}, "evaluation": {"every": 1, "quorum": 9}},
    {
        "evaluation": {
            "every": 1,
            "target": TARGET,
            "early_stopping": {"metric": "accuracy", "mode": "min", "patience": 2},
        }
    },
]


@pytest.mark.parametrize("document", SPECS)
def test_a_specification_on_a_page_is_one(document: dict[str, object]) -> None:
    RunSpec.model_validate_json(json.dumps(document))


def test_the_refusals_on_the_page_on_evaluation_are_the_servers() -> None:
    page = CHECKOUT / "docs" / "learning" / "evaluation.md"
    told = next(each.text for each in blocks(page) if each.text.startswith("evaluation.target")).splitlines()
    assert [refusal(document) for document in REFUSED] == told[: len(REFUSED)]


def refusal(document: dict[str, dict[str, object]]) -> str:
    with pytest.raises(ValidationError) as refused:
        RunSpec.model_validate_json(json.dumps(document))
    return describe_fault(refused.value.errors()[0], document)
