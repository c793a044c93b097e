"""Reads the layout of a run's tensors from the header of one of its models."""

from aggregator_service.domain.records import ModelRecord
from aggregator_service.flow.context import Flow
from aggregator_service.storage import models
from fl_protocol.tensors import LENGTH_BYTES, Header, parse_header


async def layout_of(flow: Flow, model: ModelRecord) -> Header:
    """Gives the safetensors header that every version of the model's run shares."""
    known = flow.layouts.get(model.run_id)
    if known is None:
        prefix = await flow.blobs.read(model.blob_id, 0, LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        known = parse_header(await flow.blobs.read(model.blob_id, LENGTH_BYTES, LENGTH_BYTES + length))
        flow.layouts.put(model.run_id, known)
    return known


async def layout_of_run(flow: Flow, run_id: str, *, version: int) -> Header:
    """Gives the same header, and reads that version of the model if the header is not remembered."""
    known = flow.layouts.get(run_id)
    if known is not None:
        return known
    model = await flow.transactions.read_one("look_up_model", lambda tx: models.get(tx, run_id, version))
    if model is not None and model.removed_at is not None:
        # Whoever repeats an old update is answered as ever; the initial model is never removed.
        model = await flow.transactions.read_one("look_up_model", lambda tx: models.get(tx, run_id, 0))
    if model is None:
        raise LookupError(f"run {run_id} has no model version {version}")
    return await layout_of(flow, model)
