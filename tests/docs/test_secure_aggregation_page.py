"""The page of the protocol: its sizes, tags, tables and codes are the code's, and its vectors the tests'."""

import json
import re

import pytest

import client_sdk
from aggregator_service.api.problems import STATUS
from aggregator_service.domain.sessions.steps import MAX_STRIKES, SESSION_TRANSITIONS
from fl_protocol import routes
from fl_protocol.manifests import Manifest, ManifestModel, ManifestRing
from fl_protocol.masking import messages, shamir
from fl_protocol.masking.graph import graph_of
from fl_protocol.masking.ring import MIN_LEVELS, WIDTHS, choose_ring
from fl_protocol.problems import ProblemType
from fl_protocol.runs import RunSpec
from fl_protocol.sessions import AbortCode, SeatState, SessionState
from tests.docs.pages import CHECKOUT, blocks

PAGE = CHECKOUT / "docs" / "privacy" / "secure-aggregation.md"
TEXT = PAGE.read_text()
HELPERS_TEXT = (CHECKOUT / "docs" / "privacy" / "helper-mode.md").read_text()
MASKING = CHECKOUT / "fl_protocol" / "masking"
VECTORS = CHECKOUT / "tests" / "fl_protocol" / "masking"


def rows(*columns: str) -> list[list[str]]:
    """Gives the rows of the table that has such columns."""
    head = f"| {' | '.join(columns)} |\n"
    table = TEXT[TEXT.index(head) :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


@pytest.mark.parametrize(
    ("shown", "kept"),
    [("masking-vectors.json", "vectors.json"), ("masking-session.json", "whole_session.json")],
)
def test_the_vectors_for_others_are_those_that_are_tested(shown: str, kept: str) -> None:
    assert (CHECKOUT / "docs" / shown).read_bytes() == (VECTORS / kept).read_bytes()
    assert f"](../{shown})" in TEXT


def test_messages_are_as_long_as_the_page_says_and_their_parts_lie_where_it_says() -> None:
    sizes = {
        "`advertise`, 176 bytes": messages.ADVERTISE_BYTES,
        "share record, 162 bytes": messages.SHARE_RECORD_BYTES,
        "signature record, 68 bytes": messages.SIGNED_RECORD_BYTES,
        "unmask record, 38 bytes": messages.UNMASK_RECORD_BYTES,
        "`roster`, 8 + 176 n": messages.ROSTER_HEAD_BYTES,
    }
    told = dict(rows("message", "offset: length, what"))
    for name, size in sizes.items():
        parts = [tuple(map(int, found)) for found in re.findall(r"(\d+): (\d+)", told[name])]
        assert [begin for begin, _ in parts] == [sum(length for _, length in parts[:at]) for at in range(len(parts))]
        assert sum(length for _, length in parts) == size or name.startswith("`roster`"), name
    assert messages.CIPHERTEXT_BYTES == 82
    assert shamir.SHARE_BYTES == 33
    assert shamir.COEFFICIENT_BYTES == 48
    assert "GF(2^256 + 297)" in TEXT
    assert shamir.PRIME == 2**256 + 297


def test_every_tag_of_the_code_is_on_the_page() -> None:
    code = "".join(path.read_text() for path in MASKING.glob("*.py"))
    tags = set(re.findall(r'(?:tag|tagged_hash)\("([a-z-]+)"', code)) | {"hb", "hs", "graph", "manifest"}
    assert {"advertise", "ctx", "session", "share", "share-key", "pair-mask", "self-mask", "survivors"} <= tags
    told, of_helpers = (set(re.findall(r"flsa/v1/([a-z-]+)", text)) for text in (TEXT, HELPERS_TEXT))
    assert told | of_helpers == tags
    assert "helper-mask" in of_helpers - told


def test_thresholds_are_the_codes() -> None:
    for n, k, t, quorum, dropouts, colluders in rows("n", "k", "t", "T", "may vanish", "may help the server"):
        graph = graph_of(int(n))
        assert (graph.degree, graph.threshold, graph.quorum) == (int(k), int(t), int(quorum))
        assert (graph.tolerated_dropouts, graph.tolerated_colluders) == (int(dropouts), int(colluders))
    (sparse,) = rows("n", "129", "200", "300", "500", "1000")
    for n, told in zip((129, 200, 300, 500, 1000), sparse[1:], strict=True):
        assert f"{graph_of(n).degree} / {graph_of(n).threshold}" == told


def test_states_codes_and_paths_are_the_codes() -> None:
    for state in (*SessionState, *SeatState):
        assert f"`{state}`" in TEXT, state
    for code in AbortCode:
        assert f"`{code}`" in TEXT, code
    assert set(SESSION_TRANSITIONS) == set(SessionState)
    assert MAX_STRIKES == 3
    known = {path for name, path in vars(routes).items() if name.isupper() and isinstance(path, str)}
    told = set(re.findall(r"`(?:GET|PUT|POST) (/v1/[^`?\s:]*)", TEXT))
    assert len(told) > 7
    assert told <= known
    for path in re.findall(r"`(?:GET|PUT) \.\.\.(/[a-z{}/]+)", TEXT):
        assert f"/v1/sessions/{{session_id}}{path}" in known or path == "/seat", path


def test_refusals_are_the_servers_and_errors_the_sdks() -> None:
    for status, slug, _ in rows("status", "`type`", "when"):
        problem = ProblemType(slug.strip("`").removeprefix("/problems/"))
        assert STATUS[problem] == int(status)
    for error in re.findall(r"`(\w+Error)`", TEXT):
        assert issubclass(getattr(client_sdk, error), client_sdk.FedQuorumError)
    assert [row[0] for row in rows("rule", "refuse", "the SDK's error")] == [f"C{number}" for number in range(1, 11)]


def test_the_manifests_fields_and_the_ring_are_the_codes() -> None:
    section = TEXT.split("## The manifest")[1].split("## ")[0]
    for message in (Manifest, ManifestModel, ManifestRing):
        for name in message.model_fields:
            assert f"`{name}`" in section, name
    assert "16, 24, 32, 40, 48, 64 bits" in TEXT
    assert WIDTHS == (16, 24, 32, 40, 48, 64)
    assert MIN_LEVELS == 2**15
    for n, width, weight in ((10, 24, 1), (255, 24, 1), (256, 32, 1), (100, 32, 100)):
        ring = choose_ring(max_members=n, max_abs=1.0, max_weight=weight)
        assert (ring.bits, ring.levels) == (width, (2 ** (width - 1) - 1) // (n * weight) - 1)
    (spec,) = (each.text for each in blocks(PAGE) if each.language == "json")
    assert RunSpec.model_validate_json(spec).secure_aggregation.kind == "pairwise"
    assert json.loads(spec)["secure_aggregation"]["min_members"] == 5
