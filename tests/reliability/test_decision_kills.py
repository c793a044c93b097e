"""SIGKILL around what follows from evaluations and around rollbacks: each is decided once, to the same bits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.support.events import read_events
from tests.support.insistent import Insistent
from tests.support.learning import flat_body, flat_model
from tests.support.participant import MEDIA_TYPE, Participant, create_run, enrol
from tests.support.server import ServerProcess, free_port
from tests.support.zygote import Zygote

PLAN = (
    # The third evaluation condemns its version; the one that the run ends with is the second after its last rollback.
    "evaluation.in_transaction:3",
    "evaluation.after_commit:1",
    "rollback.in_transaction:1",
    "rollback.after_commit:1",
    "publication.in_transaction:1",
    "evaluation.in_transaction:2",
    "evaluation.after_commit:1",
)
SPEC = {
    "num_rounds": 20,
    "round": {"quorum": 1, "deadline_seconds": 3600},
    "server_optimizer": {"kind": "adam", "learning_rate": 0.1},
    "evaluation": {
        "every": 1,
        "target": {"metric": "accuracy", "mode": "max", "value": 0.95},
        "early_stopping": {"metric": "accuracy", "mode": "max", "patience": 5, "min_delta": 0.01},
        "quarantine": {"metric": "accuracy", "mode": "max", "max_fall": 0.1},
    },
}


def claim(insistent: Insistent, client: Participant, run_id: str, kind: str) -> str:
    """Claims a task that must come and gives its address."""
    while True:
        answer = insistent.send(client.http, "POST", f"/v1/runs/{run_id}/tasks", params={"wait": 10})
        if answer.status_code != 204:
            task = answer.json()
            assert task["kind"] == kind, task
            return f"/v1/tasks/{task['task_id']}"


def live(insistent: Insistent, operator: httpx.Client) -> dict[str, Any]:
    """Takes a run through a good version, one left behind, a rollback and the target, and gives its history."""
    run_id = create_run(operator, flat_model(), **SPEC)
    client = enrol(operator)

    def learn(delta: float, accuracy: float) -> None:
        task = claim(insistent, client, run_id, "train")
        headers = {"Content-Type": MEDIA_TYPE}
        insistent.send(client.http, "PUT", f"{task}/update", content=flat_body(delta), headers=headers)
        report = {"num_examples": 3, "metrics": {"accuracy": accuracy}}
        task = claim(insistent, client, run_id, "evaluate")
        insistent.send(client.http, "PUT", f"{task}/evaluation", json=report)

    learn(0.5, 0.8)
    learn(-0.25, 0.85)
    learn(7.0, 0.1)
    learn(0.125, 0.86)
    key = {"Idempotency-Key": f"back-{run_id}"}
    insistent.send(operator, "POST", f"/v1/runs/{run_id}/rollback", json={"version": 1}, headers=key)
    learn(-0.25, 0.9)
    learn(1.0, 0.97)
    return history(insistent, operator, run_id)


def history(insistent: Insistent, operator: httpx.Client, run_id: str) -> dict[str, Any]:
    """Gives everything that a run says of itself but its name and the times."""
    read = [insistent.send(operator, "GET", f"/v1/runs/{run_id}{path}").json() for path in ("", "/models", "/rounds")]
    run, models, rounds = read[0], read[1]["items"], read[2]["items"]
    told = [(event["type"], event["data"]) for event in read_events(operator, run_id)]
    for _, data in told:
        for identifier in ("client_id", "update_id"):
            data.pop(identifier, None)
    return {
        "run": [run[name] for name in ("state", "reason", "current_round", "latest_version", "best_version")],
        "models": [without_times(model) for model in models],
        "rounds": [without_times(done) for done in rounds],
        "events": told,
    }


def without_times(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if not name.endswith("_at")}


def check(found: dict[str, Any]) -> None:
    """Holds a history against what the run was taken through."""
    models: Sequence[dict[str, Any]] = found["models"]
    lines = [(model["version"], model["round"], model["restored_from"], model["tags"]) for model in models]
    assert lines == [
        (0, 0, None, []),
        (1, 1, None, []),
        (2, 2, None, []),
        (3, 3, None, ["quarantined"]),
        (4, 2, 2, []),
        (5, 4, None, []),
        (6, 1, 1, []),
        (7, 5, None, []),
        (8, 6, None, ["latest", "best"]),
    ]
    digests = [model["digest"] for model in models]
    # Adam's state came back with the version: the same delta makes the same bits.
    assert (digests[4], digests[6], digests[7]) == (digests[2], digests[1], digests[2])
    assert found["run"] == ["completed", "target reached: accuracy 0.97 >= 0.95 at version 8", 6, 8, 8]
    attempts = [(done["number"], done["attempt"], done["state"]) for done in found["rounds"]]
    assert attempts == [
        *((number, 1, "completed") for number in (1, 2, 3, 4)),
        (5, 1, "abandoned"),
        (5, 2, "completed"),
        (6, 1, "completed"),
    ]


def test_every_decision_is_made_once_whenever_the_server_dies(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    server = ServerProcess(database_url, tmp_path, port=free_port(), zygote=forking).start()
    insistent = Insistent(server)
    try:
        with server.http() as operator:
            expected = live(insistent, operator)
            check(expected)
            server.kill()
            insistent.faults = list(PLAN)
            insistent.begin()
            assert live(insistent, operator) == expected
            assert (insistent.num_deaths, insistent.faults) == (len(PLAN), [])
        assert '"level": "error"' not in server.log, server.log[-4000:]
    finally:
        server.kill()
