"""A run whose adapter alone travels survives kills: exactly its updates move the adapter, and nothing else moves."""

from pathlib import Path

import numpy as np

from tests.support.chaos import KillAt, carry_out, taking_part
from tests.support.databases import POSTGRES_IN_SOAK
from tests.support.ledger import NUM_CLIENTS, Ledger, check_run, initial_model
from tests.support.participant import create_run, unpack
from tests.support.server import ServerProcess, free_port
from tests.support.zygote import Zygote

NUM_ROUNDS = 2
FROZEN = {
    "base": np.array([-0.0, np.finfo(np.float32).tiny / 2, 1e-30, 3.4e38], dtype=np.float32),
    "count": np.array([2**53 + 1], dtype=np.int64),
}
PLAN = [KillAt("aggregation.model_written", 1), KillAt("publication.in_transaction", 1)]


@POSTGRES_IN_SOAK
def test_a_killed_run_adds_each_adapter_once_and_leaves_the_frozen_tensors_bytes(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    ledger = Ledger()
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking).start()
    try:
        with server.http() as operator:
            run_id = create_run(
                operator,
                FROZEN | initial_model(),
                num_rounds=NUM_ROUNDS,
                round={"quorum": NUM_CLIENTS, "deadline_seconds": 3600},
                parameters={"trainable": ["seen"]},
            )
            with taking_part(operator, run_id, ledger) as (clients, jobs):
                server.kill()
                carry_out(server, PLAN, forking=forking, jobs=jobs)
                server.start()
            assert {job.result() for job in jobs} == {NUM_ROUNDS}
            participants = [client.participant.client_id for client in clients]
            check_run(operator, run_id, ledger, participants=participants)
            final = unpack(operator.get(f"/v1/runs/{run_id}/models/{NUM_ROUNDS}").content)
    finally:
        server.kill()
    assert {name: final[name].tobytes() for name in FROZEN} == {name: held.tobytes() for name, held in FROZEN.items()}
