"""Where a run's version 0 comes from."""

from typing import Annotated, Literal

from pydantic import Field

from fl_protocol.messages import MAX_EXACT_INTEGER, RequestMessage


class UploadedModel(RequestMessage):
    """The operator puts it before the start."""

    kind: Literal["upload"] = "upload"


class PreviousModel(RequestMessage):
    """It is a version of another run's model, taken over when the run is created; the optimizer starts afresh."""

    kind: Literal["version"] = "version"
    run_id: Annotated[str, Field(pattern=r"^run_[0-9a-f]{32}$")]
    version: Annotated[int, Field(ge=0, le=MAX_EXACT_INTEGER)]
