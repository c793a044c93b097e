"""Model: one version of the global model."""

from fl_protocol.messages import ResponseMessage, Timestamp

TENSOR_MEDIA_TYPE = "application/vnd.safetensors"
TENSOR_MEDIA_TYPES = frozenset({TENSOR_MEDIA_TYPE, "application/octet-stream"})

MODEL_VERSION_HEADER = "Model-Version"


class Model(ResponseMessage):
    """One version of the global model; version 0 is the operator's initial model (round 0)."""

    version: int
    round: int
    digest: str
    num_bytes: int
    num_parameters: int
    created_at: Timestamp
