"""The manifests of a run that this client has seen, and the key that signs them, in the client's state folder.

A log that a client keeps for itself is what a server cannot fork: it may show each client another log, but never one
client two. What proves a fork, two signed manifests, is kept as evidence.
"""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client_sdk.endpoints.masked import SignedManifest
from client_sdk.errors import ManifestError, ManifestForkError, UsageError
from client_sdk.masking.files import read_object, write_object
from client_sdk.masking.manifests import digest_of
from client_sdk.masking.terms import MANIFESTS_FOLDER
from fl_protocol.identifiers import is_identifier
from fl_protocol.manifests import Manifest

KEPT_BODIES: Final = 64
"""Of so many of the newest manifests the bytes are kept, of all others the digests."""
MAX_MISSED: Final = 10_000
"""So many manifests that were signed while this client was away are fetched, to see that they are one chain."""

SERVER_FILE: Final = "server.json"


@dataclass(frozen=True, slots=True)
class SeenManifest:
    """A manifest that this client has accepted; the bytes of an old one are gone."""

    sequence: int
    digest: str
    signed: SignedManifest | None


class ServerKey:
    """The key of the server's manifests, remembered when it is first seen."""

    def __init__(self, state_dir: Path) -> None:
        self._path: Final = Path(state_dir) / SERVER_FILE

    def load(self) -> bytes | None:
        entry = read_object(self._path)
        if entry is None:
            return None
        try:
            return bytes.fromhex(entry["manifest_key"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{self._path} is damaged: it holds the key of the server's manifests; restore it"
            ) from None

    def keep(self, key: bytes) -> None:
        write_object(self._path, {"manifest_key": key.hex()})


class ManifestLog:
    """One run's manifests, in `state_dir`/RUN_ID/manifests, a file each."""

    def __init__(self, state_dir: Path, run_id: str) -> None:
        if not is_identifier(run_id):
            raise UsageError(f"{run_id[:64]!r} is not a run's id; nothing can be kept for it in {state_dir}")
        self._folder: Final = Path(state_dir) / run_id / MANIFESTS_FOLDER

    @property
    def last_sequence(self) -> int:
        """The newest manifest's number, 0 if there is none."""
        return max((int(path.stem) for path in self._folder.glob("[0-9]*.json")), default=0)

    @property
    def first_sequence(self) -> int:
        """The oldest manifest's number, 0 if there is none."""
        return min((int(path.stem) for path in self._folder.glob("[0-9]*.json")), default=0)

    def at(self, sequence: int) -> SeenManifest | None:
        """Gives a manifest that was seen; raises UsageError for a damaged file."""
        path = self._path(sequence)
        entry = read_object(path)
        if entry is None:
            return None
        try:
            body = entry["body"]
            signed = None
            if body is not None:
                content = base64.b64decode(body, validate=True)
                signed = SignedManifest(content, entry["key_id"], bytes.fromhex(entry["signature"]))
            return SeenManifest(sequence, str(entry["digest"]), signed)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise UsageError(
                f"{path} is damaged: it is one of the manifests that this client has seen; restore it"
            ) from None

    def check(self, signed: SignedManifest, manifest: Manifest) -> None:
        """Checks a manifest against those that were seen; it must not be further than the next one.

        Raises ManifestForkError for one of which the log holds another, or that does not follow on the newest, and
        ManifestError for one that is older than anything this client has seen.
        """
        seen, last = self.at(manifest.sequence), self.last_sequence
        if seen is not None:
            if seen.digest != digest_of(signed.body):
                raise self._fork(seen, signed, manifest, field="sequence")
            return
        if manifest.sequence <= last:
            raise ManifestError(
                f"the manifest's sequence is {manifest.sequence}; this client has seen number {last} of the run, and "
                f"none before {self.first_sequence}",
                field="sequence",
                value=manifest.sequence,
                bound=last,
            )
        before = self.at(manifest.sequence - 1)
        if before is not None and manifest.previous_digest != before.digest:
            raise self._fork(before, signed, manifest, field="previous_digest")
        if (manifest.previous_digest is None) != (manifest.sequence == 1):
            raise ManifestError(
                f"the manifest's previous_digest is {manifest.previous_digest}; a run's number {manifest.sequence} has "
                f"{'none' if manifest.sequence == 1 else 'one'}",
                field="previous_digest",
                value=manifest.previous_digest,
                bound=None,
            )

    def missing_before(self, sequence: int) -> range:
        """Names the manifests between the newest that was seen and this one; none where nothing was seen yet."""
        last = self.last_sequence
        if last == 0 or sequence <= last:
            return range(0)
        if sequence - last > MAX_MISSED:
            raise ManifestError(
                f"the manifest's sequence is {sequence}, and the newest that this client has seen is {last}; at most "
                f"{MAX_MISSED} are caught up on",
                field="sequence",
                value=sequence,
                bound=last + MAX_MISSED,
            )
        return range(last + 1, sequence)

    def keep(self, signed: SignedManifest, manifest: Manifest) -> None:
        """Keeps a manifest that was checked."""
        if self.at(manifest.sequence) is not None:
            return
        self._write(SeenManifest(manifest.sequence, digest_of(signed.body), signed))
        old = self.at(manifest.sequence - KEPT_BODIES)
        if old is not None and old.signed is not None:
            self._write(SeenManifest(old.sequence, old.digest, None))

    def _write(self, seen: SeenManifest) -> None:
        write_object(self._path(seen.sequence), {"digest": seen.digest, **_rendered(seen.signed)})

    def _path(self, sequence: int) -> Path:
        return self._folder / f"{sequence:010}.json"

    def _fork(self, seen: SeenManifest, signed: SignedManifest, manifest: Manifest, *, field: str) -> ManifestForkError:
        second = SeenManifest(manifest.sequence, digest_of(signed.body), signed)
        path = self._folder / f"fork-{seen.sequence}-{second.digest[-16:]}.json"
        both = [{"sequence": each.sequence, "digest": each.digest, **_rendered(each.signed)} for each in (seen, second)]
        write_object(path, {"manifests": both})
        return ManifestForkError(
            f"the server has forked the run's log of manifests: this client has seen number {seen.sequence} as "
            f"{seen.digest}, and is now shown number {second.sequence} as {second.digest}, which follows on "
            f"{manifest.previous_digest}; both are kept in {path}",
            field=field,
            value=second.digest if field == "sequence" else manifest.previous_digest,
            bound=seen.digest,
            evidence=str(path),
        )


def _rendered(signed: SignedManifest | None) -> dict[str, str | None]:
    if signed is None:
        return {"key_id": None, "signature": None, "body": None}
    return {
        "key_id": signed.key_id,
        "signature": signed.signature.hex(),
        "body": base64.b64encode(signed.body).decode(),
    }
