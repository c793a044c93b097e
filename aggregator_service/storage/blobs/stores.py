"""What a store of bytes outside the database does, and which one a URL names."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from fl_protocol.problems import ProblemError, ProblemType

OBJECT_SCHEMES: Final = ("s3", "gs", "az")
_BLOB_ID: Final = re.compile(r"[a-z0-9_]{2,64}")


class BlobStoreError(ValueError):
    """A blob store cannot be used; the message says why and what would be right."""


class ByteStore(Protocol):
    """Keeps the bytes of blobs by their ids; every method may block, and may be called from several threads.

    `unit` is the number of bytes of which every write but a blob's last is a multiple.
    """

    url: str
    unit: int

    def check(self) -> None:
        """Raises BlobStoreError unless bytes can be written and removed."""

    def make(self, blob_ids: Sequence[str]) -> None:
        """Prepares for blobs that begin soon, so that their first writes cost less; raises OSError."""

    def write(self, blob_id: str, begin: int, parts: Sequence[memoryview]) -> None:
        """Makes bytes, in parts, durable at a multiple of `unit`, in place of what was there; raises OSError."""

    def read(self, blob_id: str, begin: int, end: int) -> bytes:
        """Gives the bytes [begin, end); raises BlobCorruptError if they are not there, OSError if nobody can tell."""

    def remove(self, blob_id: str) -> None:
        """Removes a blob, however much of it there is, or nothing if there is none; raises OSError."""


def check_location(url: str) -> str:
    """Gives back a store's URL, or `database`; raises BlobStoreError saying what would be right."""
    if url == "database":
        return url
    parts = urlsplit(url)
    if parts.scheme == "file":
        _folder(url)
        return url
    if parts.scheme not in OBJECT_SCHEMES:
        raise BlobStoreError(
            f"blob store {url!r} is not known; use database, file:///folder, s3://, gs:// or az://bucket/prefix"
        )
    if not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
        # What stands here is stored with each blob, where no secret belongs.
        raise BlobStoreError(
            f"a blob store of objects is {parts.scheme}://BUCKET/PREFIX; credentials come from outside"
        )
    return url


def open_store(url: str) -> ByteStore:
    """Opens the store that a URL names; raises BlobStoreError."""
    if urlsplit(check_location(url)).scheme == "file":
        from aggregator_service.storage.blobs.files import FileStore  # noqa: PLC0415

        return FileStore(url, _folder(url))
    try:
        # It comes with the extra [objects], which a server without such a store does without.
        from aggregator_service.storage.blobs.objects import ObjectStore  # noqa: PLC0415
    except ImportError as error:
        raise BlobStoreError(f"blob store {url!r} needs: pip install 'fedquorum[objects]' ({error})") from None
    return ObjectStore(url)


def check_blob_id(blob_id: str) -> str:
    """Gives back an identifier that may become a name in a store: it can lead nowhere else."""
    if _BLOB_ID.fullmatch(blob_id) is None:
        raise ValueError(f"{blob_id!r} is not the identifier of a blob")
    return blob_id


def unavailable() -> ProblemError:
    """Gives the problem of a store that does not answer."""
    return ProblemError(
        ProblemType.UNAVAILABLE, "the store of tensors cannot be used right now; try again", retry_after_seconds=5
    )


def _folder(url: str) -> Path:
    parts = urlsplit(url)
    folder = Path(unquote(parts.path))
    if parts.netloc or parts.query or parts.fragment or not folder.is_absolute() or "\0" in str(folder):
        raise BlobStoreError(f"blob store {url!r}: a folder is named as file:///absolute/folder")
    return folder
