"""What protects updates where nothing does."""

from typing import Literal

from fl_protocol.messages import RequestMessage


class NoPrivacy(RequestMessage):
    """No noise is added and no guarantee is given."""

    kind: Literal["none"] = "none"


class NoSecureAggregation(RequestMessage):
    """The operator can read each update."""

    kind: Literal["none"] = "none"
