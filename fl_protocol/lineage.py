"""Lineage: what an exported model says of how it came about, in the metadata of its safetensors file."""

import hashlib
import json
from typing import Final, Literal

from pydantic import Field

from fl_protocol.messages import ResponseMessage
from fl_protocol.runs import RunSpec

LINEAGE_KEY: Final = "fedquorum.lineage"
"""The key of `__metadata__` under which an exported file holds its Lineage as JSON."""

INITIAL_LINEAGE_KEY: Final = "fedquorum.initial_lineage"
"""The same of the file that was uploaded as version 0, where that was an exported one."""


class LineageUpdate(ResponseMessage):
    """One update that went into a version: the digest of its bytes, and what it counted."""

    digest: str
    num_examples: int
    weight: int


class LineageOrigin(ResponseMessage):
    """Where the run's version 0 came from; `run_id` and `version` where that is another run's model."""

    kind: Literal["upload", "version"]
    digest: str
    run_id: str | None = None
    version: int | None = None


class Lineage(ResponseMessage):
    """How one model version came about.

    Version 0 is the run's initial model. Where `restored_from` is set, the version has the very tensors of its parent.
    Any other is its parent plus the step that the `updates` of the round made, listed in the order of their digests.
    `digest` is that of the model as it is downloaded without its lineage. `updates` is empty where the list would not
    fit into the header and in a private or masked run; `num_updates` says how many there were.
    """

    format: Literal[1] = 1
    run_id: str
    run_name: str
    spec_digest: str
    initial_model: LineageOrigin
    version: int
    round: int
    digest: str
    parent_version: int | None
    parent_digest: str | None
    restored_from: int | None
    num_updates: int
    updates: list[LineageUpdate] = Field(default_factory=list)


def spec_digest(spec: RunSpec) -> str:
    """Gives the digest of a RunSpec: SHA-256 of its JSON as the run shows it, keys sorted, without spaces."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
