"""SIGKILL at every point that a session passes: it ends as if nothing had been, with its exact sum, counted once."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from aggregator_service import failpoints
from tests.support.chaos import check_nothing_is_left_over
from tests.support.insistent import Insistent, InsistentTransport
from tests.support.masked import MaskedClient, MaskedCohort, let_worker_look, masked_spec, run_through
from tests.support.participant import closing_later, create_run, small_model, wait_for_run
from tests.support.server import ServerProcess, free_port
from tests.support.stored import Stored
from tests.support.zygote import Zygote

PLAN = [
    "session.seat_taken:2",
    "session.forming:1",
    "session.message_taken:2",
    "session.entering:1",
    "session.input_stored:1",
    "session.entering:1",
    "session.entering:1",
    "session.message_taken:1",
    "session.entering:1",
    "session.sum_started:1",
    "session.sum_halfway:1",
    "session.sum_written:1",
    "session.settling:1",
    "session.settled:1",
]
"""In the order in which a session of three passes them; the four entries are those into the four later phases."""


@pytest.fixture
def insistent(database_url: str, tmp_path: Path, forking: Zygote) -> Iterator[Insistent]:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking)
    yield Insistent(server)
    server.kill()


def insist(insistent: Insistent, http: httpx.Client) -> httpx.Client:
    """Makes an HTTP client that outlives its server."""
    return closing_later(
        httpx.Client(
            base_url=http.base_url,
            headers={"Authorization": http.headers["authorization"]},
            timeout=60,
            transport=InsistentTransport(insistent),
        )
    )


def masked_cohort(insistent: Insistent, **changes: object) -> tuple[httpx.Client, MaskedCohort]:
    """Starts the server and makes three clients with tasks in a masked run, who all outlive it."""
    insistent.server.start()
    with insistent.server.http() as first:
        operator = insist(insistent, first)
    run_id = create_run(operator, small_model(), **masked_spec(3, num_rounds=2, **changes))
    cohort = MaskedCohort.enrol(operator, run_id, 3)
    for client in cohort.clients:
        client.enrolled.http = insist(insistent, client.enrolled.http)
    cohort.claim(examples=[100, 500, 700])
    return operator, cohort


def restarted(insistent: Insistent) -> None:
    """Begins to let the server die by the plan."""
    insistent.server.kill()
    insistent.begin()


def test_the_plan_has_every_point_of_a_session() -> None:
    of_sessions = {name for name in failpoints.NAMES if name.startswith("session.")}
    assert {fault.partition(":")[0] for fault in PLAN} == of_sessions - {"session.aborting"}


def test_a_session_outlives_a_kill_at_every_point(insistent: Insistent) -> None:
    operator, cohort = masked_cohort(insistent)
    insistent.faults = list(PLAN)
    restarted(insistent)
    for client in cohort.clients:
        client.sent["seat"] = client.register().content and client.advertise()
        assert client.put_seat(client.sent["seat"]).status_code in (200, 201)
    for client in cohort.clients:
        client.take_seat()
    send_all(cohort)
    wait_for_run(operator, cohort.run_id, version=1)
    assert insistent.num_deaths == len(PLAN)
    assert_counted_once(insistent.server, cohort)
    check_nothing_is_left_over(insistent.server.database_url)


def send_all(cohort: MaskedCohort) -> None:
    """Takes everyone through the phases; a message whose answer was lost is sent again, and then is known."""
    cohort.phase(lambda client: keep_sending(client, "shares", client.deal()))
    cohort.phase(lambda client: keep_sending(client, "inputs", client.masked_input(cohort.ring)))
    cohort.phase(
        lambda client: keep_sending(
            client, "consistency", client.part.sign_survivors(client.get("survivors").content, signer=client.sign)
        )
    )
    cohort.phase(lambda client: keep_sending(client, "unmask", client.answer()))


def keep_sending(client: MaskedClient, what: str, data: bytes) -> None:
    client.sent[what] = data
    taken = client.put(what, data)
    assert taken.status_code in (200, 201), taken.text


def assert_counted_once(server: ServerProcess, cohort: MaskedCohort) -> None:
    session_id = cohort.clients[0].session_id
    with Stored(server.database_url) as stored:
        done = stored.rows("SELECT state, sum_digest, revision FROM sessions WHERE session_id = :a", a=session_id)
        expected = hashlib.sha256(cohort.expected().astype("<i8").tobytes()).hexdigest()
        assert done == [("done", f"sha256:{expected}", 6)]
        counted = stored.rows("SELECT num_updates FROM rounds WHERE run_id = :a AND number = 1", a=cohort.run_id)
        assert counted == [(3,)]
        assert stored.counts("updates", "sessions", "session_messages") == {
            "updates": 3,
            "sessions": 1,
            "session_messages": 0,
        }
        # Two models and a sum; no input is left.
        assert stored.rows("SELECT count(*) FROM blobs WHERE sealed") == [(3,)]


def test_a_session_is_aborted_whole_or_not_at_all(insistent: Insistent) -> None:
    operator, cohort = masked_cohort(insistent)
    insistent.faults = ["session.aborting:1"]
    restarted(insistent)
    cohort.seat()
    first, second, _ = cohort.clients
    first.send_shares()
    second.send_shares()
    with Stored(insistent.server.database_url) as stored:
        stored.change("UPDATE sessions SET deadline_at = 0")
    let_worker_look(operator, cohort.run_id)
    while first.session("shares", 20)["state"] == "shares":
        pass
    assert insistent.num_deaths == 1
    assert {client.seat().json()["state"] for client in cohort.clients} == {"free"}
    with Stored(insistent.server.database_url) as stored:
        assert stored.counts("session_messages") == {"session_messages": 0}
    run_through(cohort)
    wait_for_run(operator, cohort.run_id, version=1)
