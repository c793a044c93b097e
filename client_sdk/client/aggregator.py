"""AggregatorClient: one method for each route of the contract."""

import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final, Self

from client_sdk import endpoints
from client_sdk.client.connection import Connection, NothingThereError, Seams, server_url
from client_sdk.client.helper_mode import HelperModeRoutes
from client_sdk.client.masked import MaskedRoutes
from client_sdk.config import DEFAULT_LIMITS, Limits
from client_sdk.endpoints import NothingToDo
from client_sdk.endpoints.events import EventReader, check_stream, ends_run, get_events
from client_sdk.endpoints.exchange import Request
from client_sdk.errors import DeltaRefusedError, FedQuorumError, TransportError, UntrustedAnswerError
from client_sdk.retries import pause_seconds
from client_sdk.transfer import Body, Content, OnBytes, StoredModel, body_of_bytes, body_of_tensors
from fl_protocol.arrays import Tensor
from fl_protocol.exclusions import Exclusion, ExclusionRequest
from fl_protocol.models import Model, RollbackRequest
from fl_protocol.privacy_reports import BrokenLedgerError, LedgerEntry, PrivacyReport, check_ledger
from fl_protocol.rounds import Contribution, Event, Round
from fl_protocol.runs import Run, RunSpec
from fl_protocol.tasks import (
    Client,
    ClientRequest,
    EnrolledClient,
    EnrolmentToken,
    EnrolmentTokenRequest,
    EvaluationReport,
    Receipt,
    Task,
)


class AggregatorClient(MaskedRoutes, HelperModeRoutes):
    """Speaks to one aggregation server as the bearer of one token (operator, enrolment, client or helper).

    ```python
    async with AggregatorClient("https://fl.example.org", token=token) as client:
        run = await client.get_run(run_id)
    ```

    Requests are repeated with back-off where that may help, always with the same bytes and the same idempotency key.
    Every method raises FedQuorumError and nothing else of its own: TransportError, UntrustedAnswerError, UsageError, or
    the ServerError of the problem that the server named. `proxy` must be given, because the environment is not read.
    """

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        allow_insecure_http: bool = False,
        limits: Limits = DEFAULT_LIMITS,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        seams: Seams | None = None,
    ) -> None:
        url = server_url(server, allow_insecure_http=allow_insecure_http)
        self.limits: Final = limits
        self._connection = Connection(url, token, limits=limits, ssl_context=ssl_context, proxy=proxy, seams=seams)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._connection.aclose()

    async def sleep(self, seconds: float) -> None:
        """Waits; a test's clock may make it short."""
        await self._connection.sleep(seconds)

    def jitter(self, seconds: float) -> float:
        """Draws a pause of up to so many seconds, so that many clients do not come back at once."""
        return self._connection.jitter(seconds)

    async def create_run(self, spec: RunSpec) -> Run:
        return await self._connection.call(endpoints.create_run(spec, idempotency_key=_new_key()))

    async def list_runs(self) -> list[Run]:
        return await self._connection.gather(lambda cursor: endpoints.list_runs(cursor=cursor))

    async def get_run(self, run_id: str) -> Run:
        return await self._connection.call(endpoints.get_run(run_id))

    async def start_run(self, run_id: str) -> Run:
        return await self._connection.call(endpoints.start_run(run_id))

    async def pause_run(self, run_id: str) -> Run:
        return await self._connection.call(endpoints.pause_run(run_id))

    async def resume_run(self, run_id: str) -> Run:
        return await self._connection.call(endpoints.resume_run(run_id))

    async def stop_run(self, run_id: str) -> Run:
        return await self._connection.call(endpoints.stop_run(run_id))

    async def roll_back(self, run_id: str, version: int) -> Model:
        """Makes an earlier version the newest again, and gives it under its new number."""
        request = RollbackRequest(version=version)
        return await self._connection.call(endpoints.roll_back(run_id, request, idempotency_key=_new_key()))

    async def get_privacy(self, run_id: str) -> PrivacyReport:
        """Tells what a run promises about its clients' data, and what it has cost so far."""
        return await self._connection.call(endpoints.get_privacy(run_id))

    async def list_ledger(self, run_id: str) -> list[LedgerEntry]:
        """Lists a run's whole privacy ledger and checks that it is a chain; raises UntrustedAnswerError if not."""
        entries = await self._connection.gather(lambda cursor: endpoints.list_ledger(run_id, cursor=cursor))
        try:
            check_ledger(entries)
        except (BrokenLedgerError, LookupError, TypeError) as error:
            raise UntrustedAnswerError(str(error)) from None
        return entries

    async def list_rounds(self, run_id: str) -> list[Round]:
        return await self._connection.gather(lambda cursor: endpoints.list_rounds(run_id, cursor=cursor))

    async def get_round(self, run_id: str, number: int) -> Round:
        """Gives the latest attempt at a round."""
        return await self._connection.call(endpoints.get_round(run_id, number))

    async def list_contributions(self, run_id: str, number: int) -> list[Contribution]:
        """Lists who contributed to a round; never a tensor."""
        return await self._connection.gather(lambda cursor: endpoints.list_contributions(run_id, number, cursor=cursor))

    async def list_models(self, run_id: str) -> list[Model]:
        return await self._connection.gather(lambda cursor: endpoints.list_models(run_id, cursor=cursor))

    async def put_initial_model(self, run_id: str, model: Mapping[str, Tensor] | bytes) -> Model:
        """Uploads version 0 from arrays by name, or from the bytes of a safetensors file."""
        body = body_of_bytes(model) if isinstance(model, bytes) else body_of_tensors(model, {})
        return await self._connection.upload(endpoints.put_initial_model(run_id), body)

    async def download_model(
        self,
        run_id: str,
        folder: Path,
        *,
        version: int | None = None,
        expected: Content | None = None,
        base: StoredModel | None = None,
        on_bytes: OnBytes | None = None,
    ) -> StoredModel:
        """Downloads a model version, or the latest one, into `folder` under the digits of its digest.

        With `expected` nothing but that digest and size is accepted; otherwise what the first answer announces binds.
        With `base`, a version that was downloaded before, fewer bytes may travel: what has changed, or zstd.
        """
        whole = _model_request(run_id, version, base=None)
        if base is not None and base.version is not None:
            request = _model_request(run_id, version, base=base.version)
            try:
                return await self._download(request, folder, expected=expected, base=base, on_bytes=on_bytes)
            except DeltaRefusedError:
                # Maybe the base's file was changed by somebody; whole, the model depends on nothing here.
                return await self._download(whole, folder, expected=expected, on_bytes=on_bytes)
        return await self._download(whole, folder, expected=expected, on_bytes=on_bytes)

    async def download_best(self, run_id: str, folder: Path, *, on_bytes: OnBytes | None = None) -> StoredModel:
        """Downloads the version that is best by the metric that the run's evaluation watches, as `download_model`."""
        return await self._download(endpoints.best_model(run_id), folder, on_bytes=on_bytes)

    async def export_model(
        self, run_id: str, version: int, folder: Path, *, on_bytes: OnBytes | None = None
    ) -> StoredModel:
        """Downloads a version with its lineage in the file's metadata, as `download_model`; its digest is another."""
        return await self._download(endpoints.export_model(run_id, version), folder, on_bytes=on_bytes)

    async def _download(
        self,
        request: Request[None],
        folder: Path,
        *,
        expected: Content | None = None,
        base: StoredModel | None = None,
        on_bytes: OnBytes | None = None,
    ) -> StoredModel:
        stored = await self._connection.download(request, folder, expected=expected, base=base, on_bytes=on_bytes)
        if stored is None:
            raise UntrustedAnswerError("the server answered 204 to a request for a model")
        return stored

    async def download_control_variate(
        self, run_id: str, folder: Path, *, version: int, expected: Content | None = None
    ) -> StoredModel:
        """Downloads the server control variate of a SCAFFOLD run's model version, as `download_model` does."""
        request = endpoints.get_control_variate(run_id, version)
        stored = await self._connection.download(request, folder, expected=expected)
        if stored is None:
            raise UntrustedAnswerError("the server answered 204 to a request for a control variate")
        return stored

    async def wait_for_model(
        self, run_id: str, folder: Path, *, after: int, wait_seconds: float | None = None
    ) -> StoredModel | None:
        """Downloads the latest model once it is newer than version `after`; None if the wait ended first."""
        wait = self.limits.wait_seconds if wait_seconds is None else wait_seconds
        request = endpoints.latest_model(run_id, after=after, wait_seconds=wait)
        return await self._connection.download(request, folder, expected=None)

    async def events(self, run_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """Yields a run's events from the one that follows number `after`, over cuts, up to the end of the run."""
        failures = 0
        while True:
            pause = self.limits.backoff_initial_seconds
            try:
                async with self._connection.open(get_events(run_id, after=after), {}) as response:
                    check_stream(response.headers)
                    reader = EventReader(max_event_bytes=self.limits.max_event_bytes)
                    async for chunk in response.aiter_raw():
                        failures = 0
                        for event in reader.feed(chunk):
                            if event.event_id <= after:
                                raise UntrustedAnswerError("the server's events go backwards")
                            after = event.event_id
                            yield event
                            if ends_run(event):
                                return
                raise TransportError("the server ended the events before the run was over")
            except NothingThereError:
                return
            except FedQuorumError as error:
                failures += 1
                asked = pause_seconds(error, failures, limits=self.limits, fraction=1.0)
                if asked is None:
                    raise
                pause = asked
            await self.sleep(pause)

    async def list_exclusions(self, run_id: str) -> list[Exclusion]:
        return await self._connection.gather(lambda cursor: endpoints.list_exclusions(run_id, cursor=cursor))

    async def exclude_client(self, run_id: str, client_id: str, request: ExclusionRequest) -> Exclusion:
        """Gives a client no more tasks in a run; its accepted updates stay counted."""
        return await self._connection.call(endpoints.exclude_client(run_id, client_id, request))

    async def readmit_client(self, run_id: str, client_id: str) -> None:
        """Lets an excluded client take part in a run again."""
        await self._connection.call(endpoints.readmit_client(run_id, client_id))

    async def create_enrolment_token(self, request: EnrolmentTokenRequest) -> EnrolmentToken:
        return await self._connection.call(endpoints.create_enrolment_token(request, idempotency_key=_new_key()))

    async def enrol_client(self, request: ClientRequest) -> EnrolledClient:
        """Creates a client; its token is in the answer and is shown this once."""
        return await self._connection.call(endpoints.enrol_client(request, idempotency_key=_new_key()))

    async def list_clients(self) -> list[Client]:
        return await self._connection.gather(lambda cursor: endpoints.list_clients(cursor=cursor))

    async def revoke_client(self, client_id: str) -> None:
        await self._connection.call(endpoints.revoke_client(client_id))

    async def claim_task(self, run_id: str, *, wait_seconds: float | None = None) -> Task | NothingToDo:
        """Asks for a task; the server may answer with the one already held. Raises RunFinishedError after the last."""
        wait = self.limits.wait_seconds if wait_seconds is None else wait_seconds
        claim = await self._connection.call(endpoints.claim_task(run_id, wait_seconds=wait))
        if isinstance(claim, NothingToDo):
            return NothingToDo(min(claim.retry_after_seconds, self.limits.retry_after_max_seconds))
        return claim

    async def give_up_task(self, task_id: str) -> None:
        await self._connection.call(endpoints.give_up_task(task_id))

    async def put_update(self, task_id: str, body: Body) -> Receipt:
        """Sends an update; see `body_of_tensors`. Raises UntrustedAnswerError for a receipt of other bytes."""
        receipt = await self._connection.upload(endpoints.put_update(task_id), body)
        if receipt.digest != body.digest:
            raise UntrustedAnswerError("the server's receipt is for other bytes than were sent")
        return receipt

    async def put_evaluation(self, task_id: str, report: EvaluationReport) -> Receipt:
        return await self._connection.call(endpoints.put_evaluation(task_id, report))


def _model_request(run_id: str, version: int | None, *, base: int | None) -> Request[None]:
    if version is None:
        return endpoints.latest_model(run_id, base=base)
    return endpoints.get_model(run_id, version, base=base)


def _new_key() -> str:
    return secrets.token_hex(16)
