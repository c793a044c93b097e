"""What an operator does: declares a run, gives it a model, watches it and takes the result."""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import anyio.to_thread

from client_sdk.client import AggregatorClient
from client_sdk.endpoints.events import ends_run
from client_sdk.errors import RunFailedError, UntrustedAnswerError, UsageError
from client_sdk.transfer import Content, OnBytes, StoredModel, read_model
from fl_protocol.arrays import Tensor
from fl_protocol.models import Model
from fl_protocol.rounds import Event, Round
from fl_protocol.runs import FINISHED_RUN_STATES, Run, RunSpec, RunState
from fl_protocol.specs.initial_model import PreviousModel
from fl_protocol.tasks import ClientRequest, EnrolledClient, EnrolmentTokenRequest

DAY_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Enrolment:
    """How a new client comes in: the token that makes it one, and how often that may be used."""

    token: str
    max_uses: int


class Operator:
    """Runs federated training on a server: `client` must hold an operator token.

    ```python
    async with AggregatorClient(server, token=operator_token) as client:
        operator = Operator(client)
        run = await operator.start_run(RunSpec(name="mnist"), initial_model)
        await operator.wait(run.run_id)
        model = await operator.result(run.run_id, folder)
    ```
    """

    def __init__(self, client: AggregatorClient) -> None:
        self.client: Final = client

    async def create_run(self, spec: RunSpec, initial_model: Mapping[str, Tensor] | bytes | None = None) -> Run:
        """Creates a draft run and uploads its version 0: arrays by name, or the bytes of a safetensors file.

        None is for a spec whose `initial_model` names a version of another run.
        """
        if (initial_model is None) != isinstance(spec.initial_model, PreviousModel):
            raise UsageError(
                "give an initial model, or a spec whose initial_model is of kind 'version': one of the two"
            )
        run = await self.client.create_run(spec)
        if initial_model is None:
            return run
        await self.client.put_initial_model(run.run_id, initial_model)
        return await self.client.get_run(run.run_id)

    async def start_run(self, spec: RunSpec, initial_model: Mapping[str, Tensor] | bytes | None = None) -> Run:
        """Creates a run with its version 0, as `create_run`, and opens its first round."""
        run = await self.create_run(spec, initial_model)
        return await self.client.start_run(run.run_id)

    async def watch(self, run_id: str, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """Yields the run's events from the beginning (or event `after`) to its end."""
        async for event in self.client.events(run_id, after=after):
            yield event

    async def wait(self, run_id: str, *, on_event: Callable[[Event], None] | None = None) -> Run:
        """Waits for the end of a run; raises RunFailedError with the server's reason if it failed or was stopped."""
        run = await self.client.get_run(run_id)
        if run.state not in FINISHED_RUN_STATES:
            async for event in self.client.events(run_id):
                if on_event is not None:
                    on_event(event)
                if ends_run(event):
                    break
            run = await self.client.get_run(run_id)
        if run.state is not RunState.COMPLETED:
            raise RunFailedError(f"run {run.name} is {run.state}: {run.reason or 'no reason was given'}")
        return run

    async def rounds(self, run_id: str) -> list[Round]:
        """Lists every attempt at every round."""
        return await self.client.list_rounds(run_id)

    async def models(self, run_id: str) -> list[Model]:
        """Lists the versions of the model, with their parents and what stands out about them."""
        return await self.client.list_models(run_id)

    async def rollback(self, run_id: str, version: int) -> Model:
        """Makes an earlier version the newest again; a running run goes on from it."""
        return await self.client.roll_back(run_id, version)

    async def download(
        self,
        run_id: str,
        folder: Path,
        *,
        version: int | Literal["best"] | None = None,
        with_lineage: bool = False,
        on_bytes: OnBytes | None = None,
    ) -> StoredModel:
        """Downloads a model version (the latest one by default) into `folder` and checks it.

        With its lineage the file says in its metadata how the version came about (`fl_protocol.lineage`).
        """
        if with_lineage:
            number = await self._number(run_id, version)
            return await self.client.export_model(run_id, number, folder, on_bytes=on_bytes)
        if version == "best":
            return await self.client.download_best(run_id, folder, on_bytes=on_bytes)
        return await self.client.download_model(run_id, folder, version=version, on_bytes=on_bytes)

    async def _number(self, run_id: str, version: int | Literal["best"] | None) -> int:
        if isinstance(version, int):
            return version
        run = await self.client.get_run(run_id)
        number = run.best_version if version == "best" else run.latest_version
        if number is None:
            raise UsageError(f"run {run.name} has no {version or 'latest'} version of its model yet")
        return number

    async def result(
        self, run_id: str, folder: Path, *, version: int | Literal["best"] | None = None
    ) -> dict[str, Tensor]:
        """Downloads a model version (the latest one by default) and gives its tensors by name."""
        stored = await self.download(run_id, folder, version=version)
        expected = Content(stored.digest, stored.num_bytes)
        model = await anyio.to_thread.run_sync(partial(read_model, stored.path, expected, was_just_checked=True))
        if model is None:
            raise UntrustedAnswerError(f"{stored.path} changed right after it was downloaded")
        return model

    async def create_enrolment(self, *, max_uses: int = 1, expires_in_seconds: float = DAY_SECONDS) -> Enrolment:
        """Makes a token with which up to `max_uses` clients can enrol themselves."""
        request = EnrolmentTokenRequest(max_uses=max_uses, expires_in_seconds=expires_in_seconds)
        token = await self.client.create_enrolment_token(request)
        return Enrolment(token.token, token.max_uses)

    async def enrol(self, name: str, *, attributes: Mapping[str, str] | None = None) -> EnrolledClient:
        """Creates a client and gives its token, which is shown this once."""
        return await self.client.enrol_client(ClientRequest(name=name, attributes=dict(attributes or {})))
