"""What a masked round is about, once its manifest was checked; needs nothing of the extra [privacy]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from client_sdk.errors import ManifestError
from fl_protocol.manifests import Manifest, ManifestTensor
from fl_protocol.masking.ring import Ring
from fl_protocol.runs import RunSpec
from fl_protocol.specs.secure_aggregation import IdentityTrust, PairwiseSecureAggregation
from fl_protocol.tasks import Receipt

MANIFESTS_FOLDER: Final = "manifests"
"""Where, below a run's folder, a client keeps the manifests that it has seen."""


@dataclass(frozen=True, slots=True)
class MaskedRound:
    """A masked round whose manifest was checked: what its sessions are about.

    `context` is what every key and signature depends on, `digest` that of the manifest's bytes.
    """

    manifest: Manifest
    digest: str
    context: bytes
    ring: Ring

    @property
    def spec(self) -> RunSpec:
        return self.manifest.spec

    @property
    def declared_trust(self) -> IdentityTrust:
        """Who vouches for the clients' identities by the run's own account."""
        masked = self.spec.secure_aggregation
        return masked.identity_trust if isinstance(masked, PairwiseSecureAggregation) else "server"


@dataclass(frozen=True, slots=True)
class Counted:
    """The input is in the session's sum."""

    session_id: str
    num_survivors: int


@dataclass(frozen=True, slots=True)
class Contributed:
    """The one message of helper mode was acknowledged."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Failed:
    """The session came to nothing for this member; with `may_retry` the update may be enrolled again."""

    reason: str
    may_retry: bool
    session_id: str | None = None


def check_coordinates(round_: MaskedRound, tensors: Sequence[ManifestTensor]) -> None:
    """Checks that the vector's coordinates are the floating-point tensors that travel of the model that came."""
    told = round_.manifest.model
    if told.tensors != list(tensors):
        raise wrong_manifest(
            "model.tensors",
            [tensor.name for tensor in told.tensors[:8]],
            [tensor.name for tensor in tensors[:8]],
            what="the model's floating-point tensors that travel, with their types and shapes, are",
        )
    if told.num_elements != sum(tensor.num_elements for tensor in tensors):
        raise wrong_manifest(
            "model.num_elements", told.num_elements, sum(each.num_elements for each in tensors), what="the model has"
        )
    most = getattr(round_.spec.privacy, "max_parameters", None)
    if most is not None and told.num_elements > most:
        raise wrong_manifest(
            "model.num_elements", told.num_elements, most, what="what the run's noise is made for at most is"
        )


def wrong_manifest(field: str, value: object, bound: object, *, what: str) -> ManifestError:
    """Makes the error for a field that is not what `what` and `bound` say together."""
    return ManifestError(
        f"the manifest's {field} is {_shown(value)}; {what} {_shown(bound)}", field=field, value=value, bound=bound
    )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else repr(value)[:160]
