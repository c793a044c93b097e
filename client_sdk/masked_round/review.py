"""Before anything of a masked round is trained: who this client is, and what the round's manifest says (rule C1)."""

import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client_sdk.client import AggregatorClient
from client_sdk.endpoints.masked import SignedManifest
from client_sdk.errors import StateConflictError, UsageError
from client_sdk.masked_round.threads import in_thread
from client_sdk.masking.identity import Identity, IdentityStore
from client_sdk.masking.manifest_log import ManifestLog, ServerKey
from client_sdk.masking.manifests import check_round, verified
from client_sdk.masking.terms import MaskedRound, wrong_manifest
from client_sdk.masking.trust import PeerTrust, client_id_bytes, effective_trust
from fl_protocol.manifests import Manifest
from fl_protocol.masking.certificates import is_certified
from fl_protocol.runs import RunSpec
from fl_protocol.sessions import IdentityKeyRequest
from fl_protocol.tasks import Task


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Checks one run's masked rounds for one client."""

    client: AggregatorClient
    run_id: str
    state_dir: Path
    trust: PeerTrust

    async def identity(self, client_id: str | None) -> Identity:
        """Reads this client's identity or makes it; raises UsageError."""
        return await in_thread(functools.partial(IdentityStore(self.state_dir).load_or_create, client_id))

    async def register(self, identity: Identity) -> None:
        """Tells the server this client's public key; raises UsageError if it knows another one."""
        certificate = None if identity.certificate is None else identity.certificate.hex()
        request = IdentityKeyRequest(public_key=identity.public_key.hex(), certificate=certificate)
        try:
            await self.client.register_identity_key(identity.client_id, request)
        except StateConflictError as error:
            raise UsageError(
                f"the server has another identity key for {identity.client_id} than this client's folder: give the "
                f"state_dir that was used then, or enrol as a new client ({error.detail})"
            ) from None

    def check_certified(self, identity: Identity, round_: MaskedRound) -> None:
        """Raises UsageError where peers want a certificate of this client's identity and it has none."""
        if effective_trust(round_.declared_trust, self.trust) != "ca":
            return
        ids = {"client_id": client_id_bytes(identity.client_id), "identity_key": identity.public_key}
        if identity.certificate is None or not is_certified(self.trust.authority or b"", identity.certificate, **ids):
            raise UsageError(
                "the run's members are certified by an authority, and this client has no certificate of its: let it "
                "sign this client's identity, and add the certificate with `fedquorum identity accept`"
            )

    async def manifest(self, task: Task, spec: RunSpec) -> MaskedRound:
        """Gets the task's manifest, those that this client has missed, and checks them; raises ManifestError."""
        if task.manifest is None:
            raise wrong_manifest("reference", None, "a reference", what="a masked run's task has")
        key = await self._server_key()
        log = ManifestLog(self.state_dir, self.run_id)
        signed = await self.client.get_manifest(self.run_id, task.manifest.sequence)
        manifest = verified(signed, server_key=key)
        for sequence in await in_thread(functools.partial(log.missing_before, manifest.sequence)):
            missed = await self.client.get_manifest(self.run_id, sequence)
            await in_thread(functools.partial(self._keep, log, missed, verified(missed, server_key=key), sequence))
        await in_thread(functools.partial(log.check, signed, manifest))
        round_ = check_round(signed, manifest, task=task, spec=spec, now=datetime.now(UTC))
        await in_thread(functools.partial(log.keep, signed, manifest))
        return round_

    def _keep(self, log: ManifestLog, signed: SignedManifest, manifest: Manifest, sequence: int) -> None:
        told = {"sequence": (manifest.sequence, sequence), "run_id": (manifest.run_id, self.run_id)}
        for field, (found, expected) in told.items():
            if found != expected:
                raise wrong_manifest(field, found, expected, what="asked for was")
        log.check(signed, manifest)
        log.keep(signed, manifest)

    async def _server_key(self) -> bytes:
        if self.trust.server_key is not None:
            return self.trust.server_key
        store = ServerKey(self.state_dir)
        known = await in_thread(store.load)
        if known is None:
            known = bytes.fromhex((await self.client.get_manifest_key()).public_key)
            await in_thread(functools.partial(store.keep, known))
        return known
