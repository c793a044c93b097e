"""Which of a model's tensors clients train, and which of these they keep to themselves, by name patterns."""

from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, model_validator

from fl_protocol.messages import RequestMessage

MAX_PATTERNS: Final = 256
MAX_PATTERN_LENGTH: Final = 512
MAX_PATTERN_BYTES: Final = 16_384
"""How much all patterns together may be: every task carries them."""

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATTERN_LENGTH, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A tensor's name, in which each `*` stands for any characters, also none and also dots; nothing else is special."""


class ParametersSpec(RequestMessage):
    """Which tensors are trained and which are personal; the others are frozen.

    A tensor travels in updates if it matches `trainable` and not `personal`. Personal tensors are trained too, but
    each client keeps its own and never sends them (FedBN, Li et al. 2021; FedPer, Arivazhagan et al. 2019). What
    matches neither is frozen: never sent and never changed.
    """

    trainable: Annotated[list[Pattern], Field(min_length=1, max_length=MAX_PATTERNS)] = Field(default=["*"])
    personal: Annotated[list[Pattern], Field(max_length=MAX_PATTERNS)] = Field(default=[])

    @model_validator(mode="after")
    def _check_patterns(self) -> Self:
        if any(not pattern.strip("*") for pattern in self.personal):
            raise ValueError("personal matches every tensor, so that nothing would travel; name fewer tensors")
        size = sum(len(pattern.encode()) for pattern in (*self.trainable, *self.personal))
        if size > MAX_PATTERN_BYTES:
            raise ValueError(f"trainable and personal take {size} bytes together; at most {MAX_PATTERN_BYTES} are kept")
        return self

    @property
    def is_everything(self) -> bool:
        """Whether every tensor travels, whatever its name."""
        return "*" in self.trainable and not self.personal

    def is_personal(self, name: str) -> bool:
        """Tells whether a tensor stays with each client."""
        return any(matches(pattern, name) for pattern in self.personal)

    def travels(self, name: str) -> bool:
        """Tells whether a tensor's change is part of an update."""
        return not self.is_personal(name) and any(matches(pattern, name) for pattern in self.trainable)

    def is_frozen(self, name: str) -> bool:
        """Tells whether nobody changes a tensor."""
        return not self.is_personal(name) and not self.travels(name)


def matches(pattern: str, name: str) -> bool:
    """Tells whether a whole name fits a pattern, in time linear in the name for each part between two `*`."""
    first, *parts = pattern.split("*")
    if not parts:
        return name == pattern
    *middle, last = parts
    at, end = len(first), len(name) - len(last)
    if at > end or not name.startswith(first) or not name.endswith(last):
        return False
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
