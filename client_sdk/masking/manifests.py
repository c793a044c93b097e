"""What a client checks of a masked round's manifest before it trains anything (rule C1 of the protocol).

The manifest is the server's word on the round, signed; its exact bytes go into every key of the round's sessions. Here
it is held against the server's key, the run's specification, the task and the model, none of which may differ from it.
"""

import hashlib
from datetime import datetime

from pydantic import ValidationError

from client_sdk.endpoints.masked import SignedManifest
from client_sdk.errors import ManifestError
from client_sdk.masking.terms import MaskedRound, wrong_manifest
from fl_protocol.manifests import Manifest
from fl_protocol.masked_vectors import manifest_ring, ring_of
from fl_protocol.masking import keys
from fl_protocol.runs import RunSpec
from fl_protocol.tasks import Task


def digest_of(body: bytes) -> str:
    """Gives the digest that stands on the wire."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def key_id_of(server_key: bytes) -> str:
    """Gives the name of a manifest key."""
    return keys.fingerprint(server_key).hex()[:16]


def verified(signed: SignedManifest, *, server_key: bytes) -> Manifest:
    """Reads a manifest that the server's key has signed; raises ManifestError."""
    expected = key_id_of(server_key)
    if signed.key_id != expected:
        raise wrong_manifest(
            "key_id", signed.key_id, expected, what="it is signed by another key than this client knows:"
        )
    if not keys.is_signed(server_key, keys.tag("manifest") + signed.body, signed.signature):
        raise ManifestError(
            "the manifest's signature is not that of the server's key, which this client knows as " + expected,
            field="signature",
            value=signed.signature.hex(),
            bound=expected,
        )
    try:
        return Manifest.model_validate_json(signed.body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ManifestError(
            f"the manifest cannot be read: {where}: {fault['msg']}", field=where, value=None, bound=None
        ) from None


def check_round(signed: SignedManifest, manifest: Manifest, *, task: Task, spec: RunSpec, now: datetime) -> MaskedRound:
    """Checks that a manifest is the task's and says of the round what the run's specification says.

    Raises ManifestError naming the field; nothing was trained yet.
    """
    reference, digest = task.manifest, digest_of(signed.body)
    if reference is None:
        raise wrong_manifest("manifest", None, "a reference", what="a masked run's task needs")
    same = {
        "digest": (digest, reference.digest),
        "sequence": (manifest.sequence, reference.sequence),
        "run_id": (manifest.run_id, task.run_id),
        "round": (manifest.round, task.round),
        "attempt": (manifest.attempt, task.attempt),
        "model.version": (manifest.model.version, task.base_version),
        "model.digest": (manifest.model.digest, task.model_digest),
        "model.num_bytes": (manifest.model.num_bytes, task.model_num_bytes),
    }
    for field, (found, expected) in same.items():
        if found != expected:
            raise wrong_manifest(field, found, expected, what="the task has")
    if manifest.not_after <= now:
        raise wrong_manifest("not_after", manifest.not_after.isoformat(), now.isoformat(), what="it is over; now it is")
    _check_spec(manifest, task=task, spec=spec)
    return MaskedRound(manifest, digest, keys.context(signed.body), ring_of(spec))


def _check_spec(manifest: Manifest, *, task: Task, spec: RunSpec) -> None:
    if manifest.spec != spec:
        field = next(name for name in RunSpec.model_fields if getattr(manifest.spec, name) != getattr(spec, name))
        raise wrong_manifest(
            f"spec.{field}", getattr(manifest.spec, field), getattr(spec, field), what="the run's specification has"
        )
    for field in ("training", "parameters", "algorithm", "encoding", "privacy", "secure_aggregation"):
        if getattr(task, field) != getattr(spec, field):
            raise wrong_manifest(f"spec.{field}", getattr(spec, field), getattr(task, field), what="the task has")
    told, ring = manifest.secure_aggregation, manifest_ring(spec)
    for field in type(told).model_fields:
        if getattr(told, field) != getattr(ring, field):
            raise wrong_manifest(
                f"secure_aggregation.{field}",
                getattr(told, field),
                getattr(ring, field),
                what="by the run's specification it is",
            )
    extras = [extra.name for extra in ring_of(spec).extras]
    if manifest.model.extras != extras:
        raise wrong_manifest("model.extras", manifest.model.extras, extras, what="by the run's specification they are")
