"""The manifest of one attempt at a masked round: what all its clients must agree on before their masks cancel.

Its exact bytes are hashed into every key and signature of the round's sessions, so that clients which were told
different things (another model, clip, step, plan) cannot add up. The server signs them, and each names the digest of
the one before: a log that anyone can poll and compare.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from fl_protocol.messages import Digest, ResponseMessage, Timestamp
from fl_protocol.runs import RunSpec

PROTOCOL: Final = "flsa/v1"
MANIFEST_MEDIA_TYPE: Final = "application/json"
SIGNATURE_HEADER: Final = "Manifest-Signature"
"""`ed25519;<key_id>;<base64>`: of the tag `flsa/v1/manifest` with a zero byte behind it, and the manifest's bytes."""

MAX_MANIFEST_BYTES: Final = 16 << 20

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class ManifestTensor(ResponseMessage):
    """One floating-point tensor that travels: `num_elements` coordinates of the vector, in row-major order."""

    name: str
    dtype: str
    shape: list[int]
    num_elements: int


class ManifestModel(ResponseMessage):
    """The global model that everyone trains, and the coordinates of the vector that is masked."""

    version: int
    digest: Digest
    num_bytes: int
    tensors: list[ManifestTensor]
    num_elements: int
    extras: list[str]


class ManifestRing(ResponseMessage):
    """The ring and its grid: a coordinate is `value / step`, rounded at random, modulo 2^bits.

    `extra_bounds` has, in the order of the extras, the largest magnitude of each as an integer; a metric is an integer
    of steps 2^-16 of itself, multiplied by the weight.
    """

    protocol: Literal["flsa/v1"]
    bits: int
    step: float
    clipping_norm: float
    max_abs_delta: float
    max_weight: int
    examples_per_unit: int
    extra_bounds: list[int]
    min_members: int
    max_members: int


class Manifest(ResponseMessage):
    """What a masked round is about; `sequence` counts a run's manifests from 1."""

    version: Literal[1]
    run_id: str
    round: int
    attempt: int
    sequence: int
    previous_digest: Digest | None
    not_after: Timestamp
    model: ManifestModel
    secure_aggregation: ManifestRing
    spec: RunSpec


class ManifestReference(ResponseMessage):
    """Where a task's manifest is, and the digest of its bytes."""

    url: str
    sequence: int
    digest: Digest


class ManifestEntry(ResponseMessage):
    """One entry of a run's log of manifests."""

    sequence: int
    round: int
    attempt: int
    digest: Digest
    previous_digest: Digest | None
    created_at: Timestamp


class ManifestKey(ResponseMessage):
    """The public key with which the server signs manifests; `key_id` is the first 16 hex digits of its SHA-256."""

    key_id: str
    public_key: Hex32
