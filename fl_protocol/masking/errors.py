"""What can be wrong with a masking session, each error naming the field, the value and the bound."""

from typing import Final

ABORT_CODES: Final = (
    "not_enough_clients",
    "too_few_shares",
    "bad_share",
    "bad_signature",
    "quorum_failed",
    "range_check_failed",
    "timeout",
    "operator",
)
"""Why a session can end without a sum."""


class MaskingError(ValueError):
    """Something of a masking session is refused; `field` names it, `value` is what it is, `bound` what would be right.

    No value here is ever a secret.
    """

    def __init__(self, field: str, *, value: object, bound: object, what: str) -> None:
        super().__init__(f"{field}: {what}")
        self.field = field
        self.value = value
        self.bound = bound


class RingError(MaskingError):
    """A sum may not fit into a ring that can be had, or a value not into its place there."""


class MessageError(MaskingError):
    """The bytes of a message do not have the form of their kind."""


class KeyRefusedError(MaskingError):
    """A public key or a signature is none that may be used."""


class ShareError(MaskingError):
    """Shares cannot be split or joined as asked, or are not what their dealer announced."""


class GraphError(MaskingError):
    """No graph with safe thresholds exists for a session, or a place in it does not exist."""


class RefusalError(MaskingError):
    """A client leaves a session as the server asks for what it must refuse; `rule` is the rule's name (C2...C7)."""

    def __init__(self, rule: str, field: str, *, value: object, bound: object, what: str) -> None:
        super().__init__(field, value=value, bound=bound, what=f"{what} (rule {rule})")
        self.rule = rule
