"""How updates travel, and what protects them."""

from typing import Literal

from fl_protocol.messages import RequestMessage


class DenseEncoding(RequestMessage):
    """Each tensor travels whole, in the model's own type."""

    kind: Literal["dense"] = "dense"


class NoPrivacy(RequestMessage):
    """No noise is added and no guarantee is given."""

    kind: Literal["none"] = "none"


class NoSecureAggregation(RequestMessage):
    """The operator can read each update."""

    kind: Literal["none"] = "none"
