"""Takes the initial global model in: safetensors with finite tensors that can be trained by the run's spec."""

from dataclasses import dataclass

import numpy as np

from aggregator_service.domain.records import ModelRecord, RunRecord
from aggregator_service.domain.uploads import UploadRecord
from aggregator_service.flow.context import Flow
from aggregator_service.flow.lifecycle import no_such_run
from aggregator_service.flow.reception import Body, Received, Receiver, digest_of, discard, receive
from aggregator_service.flow.versions import add_model
from aggregator_service.storage import models, runs, uploads
from aggregator_service.storage.blobs import BlobUpload
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.encodings.dense import DenseMeasure
from fl_protocol.masked_vectors import check_masked_model
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.runs import RunSpec, RunState
from fl_protocol.streaming import Piece, StreamDecoder
from fl_protocol.tensors import MAX_HEADER_BYTES, Header
from fl_protocol.updates import check_model


@dataclass(frozen=True, slots=True)
class StoredModel:
    """The initial model; `is_new` unless the same bytes were stored before."""

    model: ModelRecord
    is_new: bool


async def look_up(flow: Flow, run_id: str) -> tuple[RunRecord, ModelRecord | None]:
    """Gives a run with the initial model it has; raises `not-found`, or `state-conflict` once it has begun without."""
    return await flow.transactions.read("look_up_initial_model", lambda tx: _check_draft(tx, run_id))


async def stored_model(flow: Flow, run_id: str) -> ModelRecord | None:
    """Gives version 0, if it was put."""
    return await flow.transactions.read_one("get_initial_model", lambda tx: models.get(tx, run_id, 0))


async def store_initial_model(flow: Flow, run_id: str, body: Body) -> StoredModel:
    """Stores version 0 of a draft run's model; raises `state-conflict` if other bytes were stored before."""
    run, earlier = await look_up(flow, run_id)
    limit = flow.limits.max_model_bytes
    if earlier is not None:
        _check_same(earlier, await digest_of(body, max_num_bytes=limit))
        return StoredModel(earlier, is_new=False)
    checker = _ModelCheck(run.spec)
    received = await receive(flow, body, decoder=_decoder(flow, checker), on_piece=checker)
    return await _commit(flow, run_id, received)


class ModelInParts:
    """Checks an initial model while somebody else stores it, and stores it where it lies."""

    def __init__(self, flow: Flow, run: RunRecord, upload: BlobUpload) -> None:
        self._flow = flow
        self._run_id = run.run_id
        checker = _ModelCheck(run.spec)
        self._decoder = _decoder(flow, checker)
        self.receiver = Receiver(upload, self._decoder, checker)

    async def commit(self, digest: str, part: UploadRecord) -> StoredModel:
        """Stores the model and ends its upload; raises what `store_initial_model` raises: the upload stays then."""
        received = Received(self.receiver.upload, digest, self._decoder.header, part)
        return await _commit(self._flow, self._run_id, received)


def _decoder(flow: Flow, checker: "_ModelCheck") -> StreamDecoder:
    return StreamDecoder(
        max_header_bytes=MAX_HEADER_BYTES, max_num_bytes=flow.limits.max_model_bytes, check_header=checker.begin
    )


class _ModelCheck:
    """Refuses a model with a NaN or an infinity, or that cannot be trained by the run's spec."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._measure: DenseMeasure | None = None

    def begin(self, header: Header) -> None:
        check_model(header, self._spec)
        check_masked_model(header, self._spec)
        self._measure = DenseMeasure(header, float(np.finfo(np.float64).max))

    def __call__(self, piece: Piece) -> None:
        if self._measure is not None and piece.spec.is_float:
            self._measure(piece)


def _check_draft(tx: ReadTx, run_id: str) -> tuple[RunRecord, ModelRecord | None]:
    run = runs.get(tx, run_id)
    if run is None:
        raise no_such_run(run_id)
    earlier = models.get(tx, run_id, 0)
    if earlier is None and run.state is not RunState.DRAFT:
        raise ProblemError(ProblemType.STATE_CONFLICT, f"the run is {run.state.value}; only a draft takes a model")
    return run, earlier


def _check_same(earlier: ModelRecord, digest: str) -> None:
    if earlier.digest != digest:
        raise ProblemError(
            ProblemType.STATE_CONFLICT,
            f"the run has another initial model ({earlier.digest}); create a new run for a new model",
        )


async def _commit(flow: Flow, run_id: str, received: Received) -> StoredModel:
    def body(tx: WriteTx) -> StoredModel:
        runs.lock(tx, run_id)
        _, earlier = _check_draft(tx, run_id)
        if earlier is not None:
            _check_same(earlier, received.digest)
            return StoredModel(earlier, is_new=False)
        model = ModelRecord(
            run_id=run_id,
            version=0,
            round=0,
            digest=received.digest,
            num_bytes=received.upload.num_bytes,
            num_parameters=received.header.num_parameters,
            blob_id=received.upload.blob_id,
            optimizer_blob_id=None,
            parent_version=None,
            restored_from=None,
            quarantined=False,
            created_at=tx.now(),
        )
        flow.blobs.seal(tx, received.upload)
        if received.part is not None:
            uploads.hand_over(tx, received.part)
        add_model(tx, model)
        runs.set_progress(tx, run_id, current_round=0, latest_version=0)
        return StoredModel(model, is_new=True)

    try:
        stored = await flow.transactions.write("store_initial_model", body)
    except Exception:
        await discard(flow, received)
        raise
    if not stored.is_new:
        await discard(flow, received)
    return stored
