"""Which clients are asked in a round."""

from typing import Literal

from fl_protocol.messages import RequestMessage


class OpenSelection(RequestMessage):
    """Every client that asks is given a task until the cohort is full."""

    kind: Literal["open"] = "open"
