"""SIGKILL of the server and of a helper at every point: the sum is exact and counted once, and told of once."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from aggregator_service import failpoints
from client_sdk.mask_helper import HelperKeyStore, MaskHelper
from client_sdk.mask_helper.release_log import FILE_NAME
from client_sdk.masking.trust import load_roster
from fl_protocol.helper_mode import MaskRequestEntry
from tests.api.test_helper_mode import digest_of, report
from tests.reliability.test_session_kills import insist
from tests.support.chaos import check_nothing_is_left_over
from tests.support.helper_mode import HelperFederation, HelperParty, helper_spec
from tests.support.insistent import Insistent
from tests.support.mortal_helper import POINTS
from tests.support.participant import create_run, small_model, wait_for_run
from tests.support.server import ServerProcess, free_port
from tests.support.stored import Stored
from tests.support.zygote import Zygote

ROOT = Path(__file__).parents[2]
PLAN = [
    "helper.contribution_stored:1",
    "helper.contribution_taken:1",
    "helper.asking:1",
    "helper.verdict_taken:1",
    "helper.answer_stored:1",
    "helper.answer_taken:1",
    "helper.sum_started:1",
    "helper.sum_halfway:1",
    "helper.sum_written:1",
    "helper.settling:1",
    "helper.settled:1",
]
"""In the order in which a round of three clients and two helpers passes them."""
FEW = ["helper.asking:1", "helper.answer_taken:1", "helper.settling:1"]


@pytest.fixture
def insistent(database_url: str, tmp_path: Path, forking: Zygote) -> Iterator[Insistent]:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking)
    yield Insistent(server)
    server.kill()


def mortal_federation(insistent: Insistent, **changes: object) -> tuple[httpx.Client, HelperFederation]:
    """Starts the server and makes three clients and two helpers, who all outlive it."""
    insistent.server.start()
    with insistent.server.http() as first:
        operator = insist(insistent, first)
    helpers = [HelperParty("one"), HelperParty("two")]
    run_id = create_run(operator, small_model(), **helper_spec(3, helpers, num_rounds=2, **changes))
    made = HelperFederation.enrol(operator, run_id, 3, helpers)
    for one in made.clients:
        one.client.enrolled.http = insist(insistent, one.client.enrolled.http)
    for helper in helpers:
        helper.http = insist(insistent, helper.web)
    made.claim(examples=[100, 500, 700])
    return operator, made


def keep_at_it(made: HelperFederation) -> None:
    """Takes a round through; a message whose answer was lost is sent again, and then is known."""
    for one in made.clients:
        assert one.put().status_code in (200, 201)
    for helper in made.helpers:
        (asked,) = helper.pending()
        assert helper.verdict(asked["request_id"]).status_code == 204
    for helper in made.helpers:
        (asked,) = helper.pending()
        request = helper.read(asked["request_id"])
        told = helper.put(asked["request_id"], helper.mask_sum(request, made.ring, made.num_elements))
        assert told.status_code in (200, 201), told.text


def test_the_plan_has_every_point_of_a_round() -> None:
    of_helpers = {name for name in failpoints.NAMES if name.startswith("helper.")}
    assert {fault.partition(":")[0] for fault in PLAN} == of_helpers - {"helper.failing"}


@pytest.mark.parametrize("plan", [FEW, pytest.param(PLAN, marks=pytest.mark.soak)], ids=["few", "every"])
def test_a_round_outlives_a_kill_at_every_point(insistent: Insistent, plan: list[str]) -> None:
    operator, made = mortal_federation(insistent)
    insistent.server.kill()
    insistent.faults = list(plan)
    insistent.begin()
    keep_at_it(made)
    wait_for_run(operator, made.run_id, version=1)
    assert insistent.num_deaths == len(plan)
    assert report(operator, made.run_id)["sum_digest"] == digest_of(made.expected())
    with Stored(insistent.server.database_url) as stored:
        assert stored.rows("SELECT num_updates FROM rounds WHERE number = 1") == [(3,)]
        assert stored.counts("updates", "contributions", "mask_sums") == {
            "updates": 3,
            "contributions": 3,
            "mask_sums": 1,
        }
        # Two models and a sum; no vector and no helper's sum of masks is left.
        assert stored.rows("SELECT count(*) FROM blobs WHERE sealed") == [(3,)]
    check_nothing_is_left_over(insistent.server.database_url)


def test_a_round_is_abandoned_whole_or_not_at_all(insistent: Insistent) -> None:
    operator, made = mortal_federation(insistent)
    made.contribute()
    insistent.server.kill()
    insistent.faults = ["helper.failing:1"]
    insistent.begin()
    (asked,) = made.helpers[0].pending()
    refused = made.helpers[0].verdict(asked["request_id"], reason="not today")
    assert refused.status_code == 204
    assert insistent.num_deaths == 1
    assert report(operator, made.run_id)["reason"] == "helper 'one' refuses the round: not today"
    made.claim()
    keep_at_it(made)
    wait_for_run(operator, made.run_id, version=1)


@pytest.mark.parametrize(
    "points",
    [("amid_log",), pytest.param(POINTS, marks=pytest.mark.soak)],
    ids=["few", "every"],
)
@pytest.mark.parametrize("shared_server", ["sqlite"], indirect=True)
def test_a_helper_that_dies_at_every_point_tells_the_same_and_only_once(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path, points: tuple[str, ...]
) -> None:
    keys = HelperKeyStore(tmp_path / "helper").create("mortal")
    mortal, other = HelperParty("mortal", keys.sealing, keys.signing), HelperParty("other")
    run_id = create_run(shared_operator, small_model(), **helper_spec(3, [mortal, other]))
    made = HelperFederation.enrol(shared_operator, run_id, 3, [mortal, other])
    made.claim()
    made.contribute()
    roster = tmp_path / "roster"
    roster.write_text("".join(one.roster_line for one in made.clients))
    token = mortal.web.headers["authorization"].removeprefix("Bearer ")
    log = tmp_path / "helper" / FILE_NAME
    for point in points:
        command = [sys.executable, "-m", "tests.support.mortal_helper", shared_server.url, token]
        command += [str(tmp_path / "helper"), str(roster), point]
        if point != "after_verdict" and other.pending(wait=0)[0]["phase"] == "checking":
            # The verdict of the other one lets this one tell.
            made.check([other])
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == -9, (point, ended.stderr)
    made.answer([other])
    if points is not POINTS:
        with closing(MaskHelper(keys, tmp_path / "helper", roster=load_roster(roster), min_members=3)) as helper:
            (asked,) = mortal.pending()
            judged = helper.judge(mortal.raw(asked["request_id"]), MaskRequestEntry.model_validate(asked))
            told = helper.release(judged)
            with told.file:
                assert mortal.put(asked["request_id"], b"".join(told.pieces())).status_code == 201
    assert len(log.read_text().splitlines()) == 1
    wait_for_run(shared_operator, run_id, version=1)
    assert report(shared_operator, run_id)["sum_digest"] == digest_of(made.expected())
