"""The manifest of each attempt at a masked round: written and signed in the transaction that opens it."""

import base64
import hashlib
from datetime import timedelta
from functools import partial
from typing import Final

from aggregator_service.domain.records import ModelRecord, RoundRecord, RunRecord
from aggregator_service.domain.sessions.records import ManifestRecord, SignedManifest
from aggregator_service.flow.context import Flow
from aggregator_service.flow.windows import read_header
from aggregator_service.storage import manifests, models, runs
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.manifests import ManifestKey
from fl_protocol.masked_vectors import manifest_of, render_manifest
from fl_protocol.masking import keys
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.specs.secure_aggregation import is_masked

_GRACE: Final = timedelta(days=7)
"""How long after a round's deadline its manifest is still good: pauses move the deadline."""


def write(flow: Flow, tx: WriteTx, run: RunRecord, round_: RoundRecord) -> None:
    """Writes the manifest of a round that was just opened, if it is masked."""
    if not is_masked(run.spec):
        return
    model, previous = models.get(tx, run.run_id, round_.base_version), manifests.last(tx, run.run_id)
    if model is None:
        raise LookupError(f"run {run.run_id} has no model version {round_.base_version}")
    body = _body(flow, tx, run, round_, model=model, previous=previous)
    signing_key = manifests.keep_signing_key(tx, flow.entropy(keys.KEY_BYTES))
    entry = ManifestRecord(
        run_id=run.run_id,
        sequence=1 if previous is None else previous.sequence + 1,
        round_id=round_.round_id,
        round=round_.number,
        attempt=round_.attempt,
        digest=f"sha256:{hashlib.sha256(body).hexdigest()}",
        previous_digest=None if previous is None else previous.digest,
        created_at=tx.now(),
    )
    manifests.insert(tx, SignedManifest(entry, body, keys.sign(signing_key, keys.tag("manifest") + body)))


def _body(
    flow: Flow,
    tx: WriteTx,
    run: RunRecord,
    round_: RoundRecord,
    *,
    model: ModelRecord,
    previous: ManifestRecord | None,
) -> bytes:
    header = read_header(partial(flow.blobs.read_in, tx, model.blob_id))
    manifest = manifest_of(
        run.spec,
        header,
        run_id=run.run_id,
        round_number=round_.number,
        attempt=round_.attempt,
        sequence=1 if previous is None else previous.sequence + 1,
        previous_digest=None if previous is None else previous.digest,
        not_after=round_.deadline_at + _GRACE,
        base_version=model.version,
        model_digest=model.digest,
        model_num_bytes=model.num_bytes,
    )
    return render_manifest(manifest)


async def manifest_key(flow: Flow) -> ManifestKey:
    """Gives the public key that signs manifests, which is drawn when it is first asked for."""
    private_key = await flow.transactions.read_one("look_up_manifest_key", manifests.signing_key)
    if private_key is None:
        fresh = flow.entropy(keys.KEY_BYTES)
        private_key = await flow.transactions.write(
            "keep_manifest_key", lambda tx: manifests.keep_signing_key(tx, fresh)
        )
    public_key = keys.identity_public_key(private_key)
    return ManifestKey(key_id=_key_id(public_key), public_key=public_key.hex())


async def signature_header(flow: Flow, manifest: SignedManifest) -> str:
    """Gives what the header of a manifest's answer says of its signature."""
    key = await manifest_key(flow)
    return f"ed25519;{key.key_id};{base64.b64encode(manifest.signature).decode()}"


async def get_manifest(flow: Flow, run_id: str, sequence: int) -> SignedManifest:
    """Gives a manifest; raises `not-found`."""
    found = await flow.transactions.read_one("get_manifest", lambda tx: manifests.get(tx, run_id, sequence))
    if found is None:
        raise ProblemError(ProblemType.NOT_FOUND, f"run {run_id!r} has no manifest {sequence}")
    return found


async def list_manifests(flow: Flow, run_id: str, *, after_sequence: int, limit: int) -> list[ManifestRecord]:
    """Lists a run's manifests from behind a given one; raises `not-found`."""

    def body(tx: ReadTx) -> list[ManifestRecord]:
        if runs.get(tx, run_id) is None:
            raise ProblemError(ProblemType.NOT_FOUND, f"there is no run {run_id!r}; list them with GET /v1/runs")
        return manifests.page(tx, run_id, after_sequence=after_sequence, limit=limit)

    return await flow.transactions.read("list_manifests", body)


def _key_id(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()[:16]
