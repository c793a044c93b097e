"""When clients evaluate the global model on their own data."""

from typing import Annotated

from pydantic import Field

from fl_protocol.messages import RequestMessage


class EvaluationSpec(RequestMessage):
    """Evaluation by clients after every `every`-th round; 0 switches it off."""

    every: Annotated[int, Field(ge=0, le=1_000_000)] = 0
