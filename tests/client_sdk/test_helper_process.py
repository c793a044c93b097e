"""`fedquorum helper` as a process of its own, beside real participants of the SDK and the real server."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from client_sdk import (
    AggregatorClient,
    Limits,
    PeerTrust,
    PolicyError,
    PrivacyPolicy,
    Progress,
    TrainedDelta,
    TrainingTask,
    UsageError,
    participate,
)
from client_sdk.mask_helper import HelperKeyStore
from client_sdk.masking.identity import IdentityStore
from client_sdk.session.progress import HelpersTrusted, UpdateAccepted
from tests.support.helper_mode import HelperParty, helper_spec
from tests.support.participant import Participant, create_run, enrol, small_model, unpack
from tests.support.server import OPERATOR_TOKEN, ServerProcess

FAST = Limits(wait_seconds=5)
NUM_CLIENTS = 3

pytestmark = pytest.mark.parametrize("shared_server", ["sqlite"], indirect=True)


def fedquorum(*arguments: str, token: str = "", server: str = "") -> subprocess.Popen[str]:
    """Starts the command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDQUORUM_")}
    environment |= {"FEDQUORUM_TOKEN": token} | ({"FEDQUORUM_SERVER": server} if server else {})
    command = [sys.executable, "-c", "from client_sdk.cli import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def said(*arguments: str, **options: str) -> str:
    with fedquorum(*arguments, **options) as process:
        out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out


@contextmanager
def running(folder: Path, *options: str, token: str, server: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a helper until the block ends."""
    process = fedquorum("helper", "serve", "--helper-dir", str(folder), *options, token=token, server=server)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def read(operator: httpx.Client, path: str) -> httpx.Response:
    return operator.get(path)


def delta_of(number: int) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    return {name: np.float32(0.1 * generator.normal(size=values.shape)) for name, values in small_model().items()}


async def one(
    client: Participant,
    run_id: str,
    url: str,
    *,
    number: int,
    folder: Path,
    tell: Any = lambda event: None,
    **options: Any,
) -> None:
    def train(_task: TrainingTask) -> TrainedDelta:
        return TrainedDelta(tensors=delta_of(number), num_examples=100 * (1 + number), metrics={})

    async with AggregatorClient(url, token=client.token, limits=FAST) as sdk:
        state_dir = folder / str(number)
        await participate(sdk, run_id, train, state_dir=state_dir, client_id=client.client_id, on_event=tell, **options)


async def test_two_helpers_in_processes_of_their_own(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    public, tokens = [], []
    for name in ("clinic", "university"):
        made = json.loads(said("helper", "keygen", "--helper-dir", str(tmp_path / name), "--name", name))
        public.append(made)
        token = said("token", "helper", made["signing_key"], token=OPERATOR_TOKEN, server=shared_server.url)
        tokens.append(token.strip())
    spec = helper_spec(NUM_CLIENTS, [], num_rounds=2, secure_aggregation={"helpers": public})
    run_id = create_run(shared_operator, small_model(), **spec)
    clients = [enrol(shared_operator, f"sends-{number}") for number in range(NUM_CLIENTS)]
    roster = tmp_path / "roster"
    roster.write_text(
        "".join(
            IdentityStore(tmp_path / str(number)).create(client.client_id).roster_line + "\n"
            for number, client in enumerate(clients)
        )
    )
    told = list[Progress]()
    options = ("--roster", str(roster), "--min-members", "3")
    helpers = [
        running(tmp_path / made["name"], *options, token=token, server=shared_server.url)
        for made, token in zip(public, tokens, strict=True)
    ]
    known = PeerTrust(helper_keys=frozenset({bytes.fromhex(public[1]["sealing_key"])}))
    policy = PrivacyPolicy(allowed_kinds=("none",), secure_aggregation="required", min_session_members=3)
    with helpers[0], helpers[1], anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for number, client in enumerate(clients):
                call = functools.partial(
                    one, client, run_id, shared_server.url, number=number, folder=tmp_path, tell=told.append,
                    peer_trust=known, policy=policy,
                )  # fmt: skip
                group.start_soon(call)
    model = unpack(read(shared_operator, f"/v1/runs/{run_id}/models/2").content)
    for name, base in small_model().items():
        mean = sum((1 + i) * delta_of(i)[name].astype(np.float64) for i in range(NUM_CLIENTS)) / 6
        np.testing.assert_allclose(model[name] - base, 2 * mean, atol=1e-4)
    trusted = [event for event in told if isinstance(event, HelpersTrusted)]
    assert {(event.helpers, event.known) for event in trusted} == {(("clinic", "university"), ("university",))}
    assert sum(isinstance(event, UpdateAccepted) for event in told) == 2 * NUM_CLIENTS
    for made in public:
        releases = (tmp_path / made["name"] / "releases.jsonl").read_text().splitlines()
        assert [len(json.loads(line)["clients"]) for line in releases] == [NUM_CLIENTS] * 2


async def test_a_client_insists_on_helpers_that_it_knows_and_on_its_policy(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    helper = HelperParty("unknown")
    run_id = create_run(shared_operator, small_model(), **helper_spec(NUM_CLIENTS, [helper]))
    others = iter(range(9))

    async def call(**options: Any) -> None:
        # Whoever has handed a task back is not asked again in the round.
        number = next(others)
        client = enrol(shared_operator, f"insists-{number}")
        await one(client, run_id, shared_server.url, number=number, folder=tmp_path, **options)

    with pytest.raises(UsageError, match="none of the run's helpers"):
        await call(peer_trust=PeerTrust(helper_keys=frozenset({bytes(32)})))
    for demand, field in (
        ({"min_session_members": 4}, "min_session_members"),
        ({"allowed_identity_trust": ("ca",)}, "allowed_identity_trust"),
    ):
        with pytest.raises(PolicyError) as refused:
            await call(policy=PrivacyPolicy(allowed_kinds=("none",), **demand))  # type: ignore[arg-type]
        assert refused.value.field == field
    complete = PrivacyPolicy(allowed_kinds=("none",), require_complete_graph=True)
    sent = anyio.Event()

    def tell(event: Progress) -> None:
        if isinstance(event, UpdateAccepted):
            sent.set()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(call, policy=complete, tell=tell))
            await sent.wait()
            group.cancel_scope.cancel()


def test_a_helper_says_loudly_that_it_has_no_roster_or_does_not_start(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    keys = HelperKeyStore(tmp_path).create("alone")
    with fedquorum("helper", "serve", "--helper-dir", str(tmp_path), token="t") as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--trust-server-roster" in error
    party = HelperParty("alone", keys.sealing, keys.signing)
    token = party.connect(shared_operator).headers["authorization"].removeprefix("Bearer ")
    said("token", "revoke-helper", party.public["signing_key"], token=OPERATOR_TOKEN, server=shared_server.url)
    with fedquorum(
        "helper", "serve", "--helper-dir", str(tmp_path), "--trust-server-roster", token=token, server=shared_server.url
    ) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.startswith("WARNING: --trust-server-roster")
    assert "unauthenticated" in error or "revoked" in error
