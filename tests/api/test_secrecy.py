"""Tokens are shown once and kept as hashes: none stands in the database, its files, the log or any answer."""

import hashlib
import json
import re
from pathlib import Path

import httpx

from tests.support.participant import MEDIA_TYPE, create_run, enrol, pack, small_model, update_body, wait_for_run
from tests.support.raw import exchange
from tests.support.server import ServerProcess
from tests.support.vestiges import database_files, everything_kept

_SHOWN = re.compile(r"fqo_[0-9A-Za-z_-]{32,}")


def _run_a_small_run(operator: httpx.Client) -> list[str]:
    """Trains one round with a refused update and a late one; gives every token that took part."""
    run_id = create_run(operator, small_model(), num_rounds=1, round={"quorum": 2, "cohort_size": 3})
    enrolment = operator.post("/v1/enrolment-tokens", json={"max_uses": 5}, headers={"Idempotency-Key": "once"}).json()
    clients = [enrol(operator, f"client-{number}") for number in range(3)]
    tasks = [client.claim(run_id).json()["task_id"] for client in clients]
    body = update_body({name: values * 0 for name, values in small_model().items()}, num_examples=3)
    assert clients[0].put(tasks[0], body[:-1]).status_code == 400
    assert [client.put(task, body).status_code for client, task in zip(clients[:2], tasks, strict=False)] == [201, 201]
    wait_for_run(operator, run_id, version=1)
    assert clients[2].put(tasks[2], body).status_code == 410
    with httpx.Client(base_url=operator.base_url, trust_env=False) as http:
        headers = {"Authorization": f"Bearer {enrolment['token']}", "Idempotency-Key": "mine"}
        enrolled = http.post("/v1/clients", json={"name": "by-enrolment"}, headers=headers).json()
        assert http.post("/v1/clients", json={"name": "by-enrolment"}, headers=headers).json() == enrolled
    assert operator.delete(f"/v1/clients/{clients[2].client_id}").status_code == 204
    return [enrolment["token"], enrolled["token"], *(client.token for client in clients)]


def _provoke_errors(server: ServerProcess, tokens: list[str]) -> list[str]:
    """Sends each token where it must not be, and to where it is refused; gives every answer as text."""
    answers = []
    with server.http(None) as http:
        for token in tokens:
            headers = {"Authorization": f"Bearer {token}"}
            answers += [
                http.get("/v1/clients", headers=headers),
                http.get("/v1/runs", headers={"Authorization": f"Bearer {token}x"}),
                http.get("/v1/runs", headers={"Authorization": f"Basic {token}"}),
                http.get("/v1/runs", params={"limit": 0}, headers=headers),
                http.post("/v1/runs", content=b"{", headers=headers | {"Content-Type": "application/json"}),
                http.put("/v1/runs/x/models/0", content=b"x", headers=headers | {"Content-Type": MEDIA_TYPE}),
                http.delete("/v1/clients/unknown", headers=headers),
                http.patch("/v1/runs", headers=headers),
                http.get("/v1/runs/unknown/events", headers=headers | {"Last-Event-ID": "x"}),
            ]
    texts = [f"{answer.headers}{answer.text}" for answer in answers]
    for token in tokens:
        raw = f"GET /v1/runs HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\nbroken header\r\n\r\n".encode()
        texts.append(exchange(server.url, raw).body.decode())
    return texts


def test_no_token_is_kept_logged_or_repeated(server: ServerProcess, operator: httpx.Client) -> None:
    tokens = [str(server.operator_token), *_run_a_small_run(operator)]
    answers = _provoke_errors(server, tokens)
    answers += [operator.get(path).text for path in ("/v1/clients", "/v1/runs", "/metrics", "/openapi.json")]
    assert len(set(tokens)) == 6
    kept = list(everything_kept(server))
    assert server.stop() == 0
    kept += everything_kept(server)
    tables = b"\n".join(content for name, content in kept if name == "tables")
    for token in tokens:
        assert hashlib.sha256(token.encode()).hexdigest().encode() in tables, "the scan does not look where tokens are"
        assert not [text for text in answers if token in text]
        assert [name for name, content in kept if token.encode() in content] == []


def test_first_operator_token_is_shown_once_and_works(database_url: str, tmp_path: Path) -> None:
    server = ServerProcess(database_url, tmp_path, operator_token=None).start()
    try:
        shown = [token for line in server.output for token in _SHOWN.findall(line)]
        assert len(shown) == 1
        token = shown[0]
        with server.http(token) as operator:
            assert operator.get("/v1/clients").status_code == 200
            model = pack(small_model())
            run_id = operator.post("/v1/runs", json={}).json()["run_id"]
            put = operator.put(f"/v1/runs/{run_id}/models/0", content=model, headers={"Content-Type": MEDIA_TYPE})
            assert put.status_code == 201
        assert server.stop() == 0
        server.start()
        assert sum(token in line for line in server.output) == 1
        assert sum("fqo_" in line for line in server.output) == 1
        with server.http(token) as operator:
            assert operator.get("/v1/clients").status_code == 200
        elsewhere = [(name, content) for name, content in everything_kept(server) if name != "output"]
        assert [name for name, content in elsewhere if token.encode() in content] == []
    finally:
        server.kill()


def test_given_operator_token_is_not_shown(shared_server: ServerProcess) -> None:
    assert not [line for line in shared_server.output if "token" in line]


def test_database_and_lock_of_sqlite_are_private(shared_server: ServerProcess) -> None:
    for path in database_files(shared_server):
        assert path.stat().st_mode & 0o077 == 0, path


STRANGE = ("\x1b[31mred", "line\r\nbreak", "nul\0", "\u202egnp", "x" * 5000)


def test_log_stays_one_json_object_a_line(shared_server: ServerProcess) -> None:
    """Whatever callers send, the log holds no control character and each line of it can be read."""
    with shared_server.http() as operator:
        for name in STRANGE:
            for path in ("/v1/runs", "/v1/clients"):
                assert operator.post(path, json={"name": name}).status_code == 422
            assert operator.get("/v1/runs", params={"cursor": name}).status_code == 422
    for name in STRANGE:
        exchange(shared_server.url, b"GET /" + name.encode() + b" HTTP/1.1\r\nX-Name: " + name.encode() + b"\r\n\r\n")
    lines = shared_server.log.splitlines()
    assert any("Invalid HTTP request" in line for line in lines)
    for line in lines:
        assert isinstance(json.loads(line), dict)
        assert line.isprintable()
