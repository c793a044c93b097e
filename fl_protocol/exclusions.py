"""Excluding a client from a run."""

from typing import Annotated

from pydantic import StringConstraints

from fl_protocol.messages import RequestMessage, ResponseMessage, Timestamp

Reason = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class ExclusionRequest(RequestMessage):
    """Why a client is to get no more tasks in a run; the client is told."""

    reason: Reason


class Exclusion(ResponseMessage):
    """A client that gets no tasks in a run."""

    client_id: str
    reason: str
    excluded_at: Timestamp
