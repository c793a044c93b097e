"""A cohort is drawn once: SIGKILL between the draw and the first claim, and amid the claims, changes nobody's place."""

from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.support.federation import answer_all, claim_all, draft, federation, start
from tests.support.participant import Participant, wait_for_run
from tests.support.server import ServerProcess, free_port
from tests.support.stored import Stored
from tests.support.zygote import Zygote

LONG = {"quorum": 4, "min_updates": 1, "deadline_seconds": 3600}
SELECTIONS = (
    {"kind": "uniform"},
    {"kind": "stratified", "attribute": "region"},
    {"kind": "poisson", "probability": 0.5},
)
DRAWN = ("draws", "invitations")


def test_a_cohort_outlives_the_server_that_drew_it(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking).start()
    try:
        with server.http() as operator, Stored(database_url) as stored:
            regions = federation(operator, {"north": 4, "south": 2, "west": 2})
            clients = [client for members in regions.values() for client in members]
            runs = [draft(operator, clients, num_rounds=1, round=LONG, selection=selection) for selection in SELECTIONS]
            for run_id in runs:
                start(operator, run_id)
            drawn = stored.snapshot(*DRAWN)
            server.kill()
            server.start()
            claimed = [claim_all(clients[:3], run_id) for run_id in runs]
            server.kill()
            server.start()
            tasks = [claim_all(clients, run_id) for run_id in runs]
            assert stored.snapshot(*DRAWN) == drawn
            assert sum(map(len, tasks)) == len(drawn["invitations"])
            for before, after in zip(claimed, tasks, strict=True):
                held = {client_id: after[client_id]["task_id"] for client_id in before}
                assert held == {client_id: task["task_id"] for client_id, task in before.items()}
            assert [len(found) for found in tasks[:2]] == [4, 4]
            by_region = [sum(client.client_id in tasks[1] for client in members) for members in regions.values()]
            assert by_region == [2, 1, 1]
            finish(operator, clients, runs[0], tasks[0])
    finally:
        server.kill()


def finish(
    operator: httpx.Client, clients: Sequence[Participant], run_id: str, tasks: dict[str, dict[str, object]]
) -> None:
    answer_all(clients, tasks)
    wait_for_run(operator, run_id, version=1)
