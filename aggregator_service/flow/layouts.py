"""Reads the layout of a run's tensors from the header of one of its models."""

from aggregator_service.domain.records import ModelRecord
from aggregator_service.flow.context import Flow
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
