"""Whether a helper may tell the sum of masks that a server asks for: what it insists on, whatever the server says."""

from collections import Counter
from dataclasses import dataclass, field

from pydantic import ValidationError

from client_sdk.mask_helper.keys import HelperKeys
from client_sdk.mask_helper.release_log import Release, ReleaseLog
from client_sdk.masking.trust import Keys
from fl_protocol.helper_mode import MaskRequestEntry
from fl_protocol.manifests import Manifest
from fl_protocol.masked_vectors import manifest_ring, ring_of
from fl_protocol.masking.contributions import open_seed
from fl_protocol.masking.errors import MaskingError, RingError, ShareError
from fl_protocol.masking.keys import Secret
from fl_protocol.masking.mask_requests import Contributor, MaskRequest, parse_request
from fl_protocol.masking.ring import Ring
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation


class HelperRefusalError(Exception):
    """The helper refuses the whole request; the message says why and is told to the server."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A request that was looked at: the seeds of those who may be told of, and why the others may not be."""

    request: MaskRequest
    release: Release
    ring: Ring
    num_elements: int
    refused: dict[str, str]
    seeds: list[Secret] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Insistence:
    """What a helper insists on: `roster` is its own list of clients' identity keys, None to believe the server."""

    keys: HelperKeys
    roster: Keys | None
    min_members: int


def judge(data: bytes, entry: MaskRequestEntry, *, insists: Insistence, log: ReleaseLog) -> Judged:
    """Looks at a request; raises HelperRefusalError for one that no change of its set of clients would make right."""
    request = _parsed(data)
    manifest = _manifest(request, entry)
    masked = _own_run(request, manifest, insists)
    least = max(insists.min_members, masked.min_members)
    if len(request.members) < least:
        raise HelperRefusalError(f"the set has {len(request.members)} clients; this helper tells of {least} or more")
    release = Release(
        run_id=manifest.run_id,
        round=manifest.round,
        model_digest=manifest.model.digest,
        members_digest=request.members_digest.hex(),
        clients=tuple(_name(member) for member in request.members),
    )
    refused, seeds = _members(request, release, insists=insists, log=log)
    ring = _ring(manifest)
    num_elements = manifest.model.num_elements + len(ring.extras)
    return Judged(request, release, ring, num_elements, refused, seeds)


def _parsed(data: bytes) -> MaskRequest:
    try:
        return parse_request(data)
    except MaskingError as error:
        raise HelperRefusalError(f"the request cannot be read: {error}") from None


def _manifest(request: MaskRequest, entry: MaskRequestEntry) -> Manifest:
    """Reads the round's manifest, whose hash the clients have signed: it says which round this is, not the server."""
    try:
        manifest = Manifest.model_validate_json(request.manifest)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise HelperRefusalError(f"the manifest cannot be read: {where}") from None
    told = (entry.run_id, entry.round, entry.attempt, entry.helper)
    found = (manifest.run_id, manifest.round, manifest.attempt, request.helper)
    if told != found:
        raise HelperRefusalError(f"the request is for {told} by the list and for {found} by its manifest")
    return manifest


def _own_run(request: MaskRequest, manifest: Manifest, insists: Insistence) -> HelperSecureAggregation:
    masked = manifest.spec.secure_aggregation
    if not isinstance(masked, HelperSecureAggregation) or len(masked.helpers) != request.num_helpers:
        raise HelperRefusalError("the manifest is of a run without helpers, or with others than the request says")
    named = masked.helpers[request.helper]
    own = insists.keys.public
    if (named.sealing_key, named.signing_key) != (own.sealing_key, own.signing_key):
        raise HelperRefusalError(f"helper {request.helper} of the run has other keys than this one")
    if masked.identity_trust == "pinned" and insists.roster is None:
        raise HelperRefusalError(
            "the run promises its clients that helpers have rosters of their own (identity_trust 'pinned'), and this "
            "one has none"
        )
    return masked


def _ring(manifest: Manifest) -> Ring:
    try:
        ring, expected = ring_of(manifest.spec), manifest_ring(manifest.spec)
    except (RingError, ValueError) as error:
        raise HelperRefusalError(f"the manifest's run has no ring: {error}") from None
    if manifest.secure_aggregation != expected:
        raise HelperRefusalError("the manifest's ring is not the one that follows from its run's specification")
    return ring


def _members(
    request: MaskRequest, release: Release, *, insists: Insistence, log: ReleaseLog
) -> tuple[dict[str, str], list[Secret]]:
    told = set(log.told_before(release.place, release.clients, members_digest=release.members_digest))
    uses = Counter(member.identity_key for member in request.members)
    refused: dict[str, str] = {}
    seeds: list[Secret] = []
    for member in request.members:
        name = _name(member)
        reason = _stranger(member, insists.roster)
        if reason is None and uses[member.identity_key] > 1:
            reason = "its identity key is another client's, too"
        if reason is None and not member.is_signed(request.context):
            reason = "its signature is not of this round's manifest, its vector and its seeds"
        if reason is None and name in told:
            reason = "it was told of before in this round, in another set"
        seed = None if reason is not None else _seed(member, request, insists.keys)
        if seed is None:
            refused[name] = reason or "its sealed seed does not open"
        else:
            seeds.append(seed)
    return refused, seeds


def _stranger(member: Contributor, roster: Keys | None) -> str | None:
    if roster is None:
        return None
    known = roster.get(member.client_id)
    if known is None:
        return "it is not on this helper's roster"
    return None if known == member.identity_key else "its identity key is not the one on this helper's roster"


def _seed(member: Contributor, request: MaskRequest, own: HelperKeys) -> Secret | None:
    try:
        return open_seed(
            member.sealed[request.helper],
            own.sealing,
            context=request.context,
            helper=request.helper,
            client_id=member.client_id,
            vector_digest=member.vector_digest,
        )
    except ShareError:
        return None


def _name(member: Contributor) -> str:
    return f"client_{member.client_id.hex()}"
