"""Model: one version of the global model."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from fl_protocol.messages import MAX_EXACT_INTEGER, RequestMessage, ResponseMessage, Timestamp

TENSOR_MEDIA_TYPE = "application/vnd.safetensors"
DELTA_MEDIA_TYPE = "application/vnd.fedquorum.delta"
TENSOR_MEDIA_TYPES = frozenset({TENSOR_MEDIA_TYPE, "application/octet-stream"})

MODEL_VERSION_HEADER = "Model-Version"


class ModelTag(StrEnum):
    """What stands out about a version: the newest, the best evaluated one, one that an evaluation condemned."""

    LATEST = "latest"
    BEST = "best"
    QUARANTINED = "quarantined"


class Model(ResponseMessage):
    """One version of the global model; version 0 is the operator's initial model (round 0).

    `round` is the one whose updates made these tensors, `parent_version` what they were added to. A version that a
    rollback or a quarantine published again has the tensors of `restored_from`, which then is its parent too. `tags`
    are those of ModelTag. `removed_at`: since when the run's retention policy has left nothing of it but this.
    """

    version: int
    round: int
    digest: str
    num_bytes: int
    num_parameters: int
    created_at: Timestamp
    parent_version: int | None = None
    restored_from: int | None = None
    tags: list[str] = Field(default_factory=list)
    removed_at: Timestamp | None = None


class RollbackRequest(RequestMessage):
    """Which version of its model a run goes back to."""

    version: Annotated[int, Field(ge=0, le=MAX_EXACT_INTEGER)]
