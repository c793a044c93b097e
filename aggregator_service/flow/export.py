"""Gives a model version as a safetensors file that says how it came about."""

import asyncio
import hashlib

from aggregator_service.domain.records import ModelRecord, RunRecord
from aggregator_service.flow import downloads
from aggregator_service.flow.context import Flow
from aggregator_service.flow.downloads import Content
from aggregator_service.flow.lifecycle import no_such_run
from aggregator_service.flow.reading import no_such_version
from aggregator_service.flow.retention import check_kept
from aggregator_service.flow.sealed_rounds import effective_weights
from aggregator_service.storage import models, rounds, runs, updates
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.lineage import (
    INITIAL_LINEAGE_KEY,
    LINEAGE_KEY,
    Lineage,
    LineageOrigin,
    LineageUpdate,
    spec_digest,
)
from fl_protocol.specs.initial_model import PreviousModel
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.rounds import MAX_COHORT_SIZE
from fl_protocol.specs.secure_aggregation import is_masked
from fl_protocol.tensors import LENGTH_BYTES, MAX_HEADER_BYTES, Header, parse_header, render_header


async def exported(flow: Flow, run_id: str, version: int) -> Content:
    """Gives a version with its lineage in the header; raises `not-found` and `removed`.

    The digest of the whole takes one pass over the model, the first time that this process is asked.
    """
    model, lineage = await flow.transactions.read("read_lineage", lambda tx: _lineage(tx, run_id, version))
    prefix = await flow.blobs.read(model.blob_id, 0, LENGTH_BYTES)
    data_start = LENGTH_BYTES + int.from_bytes(prefix, "little")
    header = parse_header(await flow.blobs.read(model.blob_id, LENGTH_BYTES, data_start))
    rendered = _with_lineage(header, lineage)
    content = Content(
        version=version,
        digest="",
        prefix=rendered,
        blob_id=model.blob_id,
        blob_begin=data_start,
        num_bytes=len(rendered) + model.num_bytes - data_start,
    )
    return await _digested(flow, run_id, content)


def _with_lineage(header: Header, lineage: Lineage) -> bytes:
    """Renders a model's header with its lineage, without the list of updates where that would make it too long."""
    metadata = dict(header.metadata)
    if LINEAGE_KEY in metadata:
        metadata[INITIAL_LINEAGE_KEY] = metadata[LINEAGE_KEY]
    tensors = [(spec.name, spec.dtype, spec.shape) for spec in header.tensors]
    whole = render_header(tensors, metadata | {LINEAGE_KEY: lineage.model_dump_json()})
    if len(whole) <= LENGTH_BYTES + MAX_HEADER_BYTES:
        return whole
    short = lineage.model_copy(update={"updates": []})
    return render_header(tensors, metadata | {LINEAGE_KEY: short.model_dump_json()})


async def _digested(flow: Flow, run_id: str, content: Content) -> Content:
    digest = flow.export_digests.get(run_id, content.version)
    if digest is None:
        hasher = hashlib.sha256()
        async for piece in downloads.plain(flow, content, begin=0, end=content.num_bytes):
            await asyncio.to_thread(hasher.update, piece)
        digest = f"sha256:{hasher.hexdigest()}"
        flow.export_digests.put(run_id, content.version, digest=digest)
    return content.named(digest)


def _lineage(tx: ReadTx, run_id: str, version: int) -> tuple[ModelRecord, Lineage]:
    run = runs.get(tx, run_id)
    if run is None:
        raise no_such_run(run_id)
    model = models.get(tx, run_id, version)
    if model is None:
        raise no_such_version(run, version)
    check_kept(model)
    parent = None if model.parent_version is None else models.get(tx, run_id, model.parent_version)
    contributed = _updates(tx, run, model)
    # A file is handed on, and by its digest anyone could tell whether an update is the one they guess. Of masked ones
    # neither the digests nor the weights are known.
    is_secret = not isinstance(run.spec.privacy, NoPrivacy) or is_masked(run.spec)
    return model, Lineage(
        run_id=run_id,
        run_name=run.name,
        spec_digest=spec_digest(run.spec),
        initial_model=_origin(tx, run),
        version=version,
        round=model.round,
        digest=model.digest,
        parent_version=model.parent_version,
        parent_digest=None if parent is None else parent.digest,
        restored_from=model.restored_from,
        num_updates=len(contributed),
        updates=[] if is_secret else contributed,
    )


def _origin(tx: ReadTx, run: RunRecord) -> LineageOrigin:
    initial = models.get(tx, run.run_id, 0)
    if initial is None:
        raise LookupError(f"run {run.run_id} has versions and no initial model")
    declared = run.spec.initial_model
    if not isinstance(declared, PreviousModel):
        return LineageOrigin(kind="upload", digest=initial.digest)
    return LineageOrigin(kind="version", digest=initial.digest, run_id=declared.run_id, version=declared.version)


def _updates(tx: ReadTx, run: RunRecord, model: ModelRecord) -> list[LineageUpdate]:
    if model.version == 0 or model.restored_from is not None:
        return []
    made_by = rounds.newest(tx, model.run_id, model.round)
    if made_by is None or made_by.result_version != model.version:
        raise LookupError(f"run {model.run_id} has no round that made version {model.version}")
    counted = updates.of_round(tx, made_by.round_id)
    return [
        LineageUpdate(digest=update.digest, num_examples=update.num_examples, weight=weight)
        for update, weight in zip(counted, effective_weights(tx, run, counted), strict=True)
    ][:MAX_COHORT_SIZE]
