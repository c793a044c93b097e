"""Uploads that go on after a cut: what is kept of one, and whether an append to it is in its place."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from fl_protocol.problems import ProblemError, ProblemType

LIFETIME: Final = timedelta(hours=24)
"""How long a part waits for its next bytes."""

MAX_SEGMENTS: Final = 10_000
"""How many appends one part may be made of: each has a row and a blob, however short it is."""


@dataclass(frozen=True, slots=True)
class UpdateTarget:
    """The body is the update of a task."""

    task_id: str
    client_id: str


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """The body is the initial model of a run."""

    run_id: str


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """A body of `num_bytes` of which `num_stored` are durable; `coding` and `digest` are what the PUT would have said.

    `append_epoch` counts those who appended or asked: what an earlier one writes later is not stored.
    """

    upload_id: str
    target: UpdateTarget | ModelTarget
    num_bytes: int
    coding: str
    digest: str | None
    num_stored: int
    append_epoch: int
    completed: bool
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Segment:
    """A blob with the bytes of one append, the first of which is the part's byte `begins_at`."""

    begins_at: int
    blob_id: str


class MismatchingOffsetError(ProblemError):
    """An append does not begin where the stored bytes end."""

    def __init__(self, *, expected_offset: int, provided_offset: int) -> None:
        super().__init__(
            ProblemType.MISMATCHING_UPLOAD_OFFSET,
            f"the upload has {expected_offset} bytes and the append begins at byte {provided_offset}; "
            f"send what follows byte {expected_offset}",
        )
        self.expected_offset = expected_offset
        self.provided_offset = provided_offset


def no_such_upload(upload_id: str) -> ProblemError:
    """Gives the problem of an upload that does not exist, does no longer, or is another's."""
    return ProblemError(ProblemType.NOT_FOUND, f"there is no upload {upload_id!r} (any more); begin a new one")


def check_owner(record: UploadRecord | None, *, upload_id: str, client_id: str | None, now: datetime) -> UploadRecord:
    """Gives an upload that may go on to its client, or a model's to an operator (None); everybody else: `not-found`."""
    if record is None or record.expires_at <= now:
        raise no_such_upload(upload_id)
    owner = record.target.client_id if isinstance(record.target, UpdateTarget) else None
    if owner != client_id:
        raise no_such_upload(upload_id)
    return record


def check_append(record: UploadRecord, *, offset: int, num_bytes: int | None, is_last: bool) -> None:
    """Refuses an append that is out of place, whose announced bytes (None: not announced) do not fit, or comes late."""
    if record.completed:
        if offset != record.num_bytes or num_bytes != 0 or not is_last:
            raise ProblemError(ProblemType.COMPLETED_UPLOAD, "the upload is complete; nothing can be appended to it")
        return
    if offset != record.num_stored:
        raise MismatchingOffsetError(expected_offset=record.num_stored, provided_offset=offset)
    if num_bytes is not None:
        check_end(record, end=offset + num_bytes, is_last=is_last)


def check_end(record: UploadRecord, *, end: int, is_last: bool) -> None:
    """Refuses an append that ends behind the announced length, or before it though it is said to be the last."""
    if end > record.num_bytes:
        raise ProblemError(
            ProblemType.TOO_LARGE, f"the append ends at byte {end}; Upload-Length announced {record.num_bytes}"
        )
    if is_last and end < record.num_bytes:
        raise ProblemError(
            ProblemType.INVALID_REQUEST,
            f"Upload-Complete is ?1 and the append ends at byte {end}; Upload-Length announced {record.num_bytes}",
        )
