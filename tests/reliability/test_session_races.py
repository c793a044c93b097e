"""Members that send at the same instant, to one server or to two: a session goes through each phase once."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.masked import MaskedClient, MaskedCohort, masked_spec
from tests.support.participant import closing_later, create_run, small_model, wait_for_run
from tests.support.server import ServerProcess
from tests.support.stored import Stored

NUM_CLIENTS = 6


def spread_over(servers: Sequence[ServerProcess], cohort: MaskedCohort) -> None:
    """Lets every second client talk to the second server."""
    for number, client in enumerate(cohort.clients):
        server = servers[number % len(servers)]
        client.enrolled.http = closing_later(
            httpx.Client(
                base_url=server.url,
                headers={"Authorization": f"Bearer {client.enrolled.token}"},
                timeout=60,
                verify=False,
            )
        )


def at_once(clients: Sequence[MaskedClient], act: Callable[[MaskedClient], object]) -> None:
    with ThreadPoolExecutor(min(len(clients), 16)) as pool:
        for job in [pool.submit(act, client) for client in clients]:
            job.result()


def race(servers: Sequence[ServerProcess], operator: httpx.Client, num_clients: int = NUM_CLIENTS) -> None:
    """Runs a round whose clients do everything at the same time, and holds what is stored against it."""
    run_id = create_run(
        operator, small_model(), **masked_spec(num_clients, secure_aggregation={"target_members": num_clients})
    )
    cohort = MaskedCohort.enrol(operator, run_id, num_clients)
    spread_over(servers, cohort)
    cohort.claim()
    ring = cohort.ring
    at_once(cohort.clients, MaskedClient.ask_for_seat)
    at_once(cohort.clients, MaskedClient.take_seat)
    at_once(cohort.clients, MaskedClient.send_shares)
    at_once(cohort.clients, lambda client: client.leave("shares"))
    at_once(cohort.clients, lambda client: client.send_input(ring))
    at_once(cohort.clients, lambda client: client.leave("input"))
    at_once(cohort.clients, MaskedClient.send_signature)
    at_once(cohort.clients, lambda client: client.leave("consistency"))
    at_once(cohort.clients, lambda client: client.put("unmask", client.answer()))
    wait_for_run(operator, run_id, version=1)
    digest = hashlib.sha256(cohort.expected().astype("<i8").tobytes()).hexdigest()
    with Stored(servers[0].database_url) as stored:
        found = stored.rows("SELECT state, revision, sum_digest FROM sessions WHERE run_id = :a", a=run_id)
        assert found == [("done", 6, f"sha256:{digest}")]
        counted = stored.rows("SELECT num_updates FROM rounds WHERE run_id = :a", a=run_id)
        assert counted == [(num_clients,)]


def test_messages_that_come_at_once_move_a_session_on_once(servers: list[ServerProcess]) -> None:
    with servers[0].http() as operator:
        # Two servers that sum at once, of which one removes the inputs, need not meet the first time.
        for _ in range(3):
            race(servers, operator)


@pytest.mark.soak
def test_100_such_sessions(servers: list[ServerProcess]) -> None:
    with servers[0].http() as operator:
        for _ in range(100):
            race(servers, operator)


@pytest.mark.soak
def test_more_than_128_members_mask_by_a_sparse_graph(servers: list[ServerProcess]) -> None:
    with servers[0].http() as operator:
        race(servers, operator, num_clients=132)
