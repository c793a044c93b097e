"""Variants of a model version that cost its reader fewer bytes: each is made when first asked for, once, and stored.

What does not save a twentieth of the bytes is not kept, only that it was tried: weights that nothing has trained yet
are noise. Nothing is made before somebody asks, because it would take a round's time where everybody is near.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Final

from aggregator_service.domain.records import ModelRecord, RenditionKey, RenditionKind, RenditionRecord, TensorFile
from aggregator_service.flow.context import Flow
from aggregator_service.flow.downloads import Content, Form
from aggregator_service.flow.read_ahead import ReadAhead
from aggregator_service.storage import models, renditions
from aggregator_service.storage.blobs import BlobUpload
from aggregator_service.storage.transactions import WriteTx
from fl_protocol import model_deltas
from fl_protocol.model_deltas import DeltaError, DeltaHead

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_DELTA_VERSIONS: Final = 8
"""How far behind a version the base of a delta may be, which bounds how many deltas there are of it."""
PATIENCE_SECONDS: Final = 5.0
"""How long a request waits for a rendition that is being made; then it gets the whole model."""

_KEPT_FOR: Final = timedelta(days=1)
_PIECE_NUM_BYTES: Final = 1 << 20
_LEVEL: Final = 1
_LEAST_SAVED: Final = 20
_SAMPLES: Final = 8
_SAMPLE_NUM_BYTES: Final = 128 << 10


_Pieces = Callable[[], Iterator[bytes]]


class _NotWorthItError(Exception):
    """A rendition would be nearly as large as what it stands for."""


class _StoppedError(Exception):
    """The server is draining."""


async def in_zstd(flow: Flow, model: ModelRecord) -> Content | None:
    """Gives a version's model in zstd; None where that saves little or takes too long now."""
    key = RenditionKey(model.run_id, model.version, RenditionKind.ZSTD)
    return await _given(flow, key, of=model.file, pieces=lambda: _compressed(flow, model.file))


async def control_in_zstd(flow: Flow, model: ModelRecord, control: TensorFile) -> Content | None:
    """Gives a version's control variate in zstd, as `in_zstd` does its model."""
    key = RenditionKey(model.run_id, model.version, RenditionKind.CONTROL_ZSTD)
    return await _given(flow, key, of=control, pieces=lambda: _compressed(flow, control))


async def delta(flow: Flow, model: ModelRecord, *, base_version: int) -> Content | None:
    """Gives what turns an earlier version into this one; None as for `in_zstd`, or if there is no near such version."""
    if not 1 <= model.version - base_version <= MAX_DELTA_VERSIONS:
        return None
    base = await flow.transactions.read_one("get_model", lambda tx: models.get(tx, model.run_id, base_version))
    if base is None or base.removed_at is not None:
        return None
    key = RenditionKey(model.run_id, model.version, RenditionKind.DELTA, base_version)
    return await _given(flow, key, of=model.file, pieces=lambda: _delta(flow, base.file, model.file))


async def forget_old(flow: Flow) -> int:
    """Removes renditions that were made a day ago or earlier of versions that are not the newest; gives how many.

    They are made again if somebody asks; a download of one that is under way is cut and goes on with another form.
    """
    made_before = await flow.transactions.read_one("now", lambda tx: tx.now()) - _KEPT_FOR
    total = 0
    while removed := await flow.transactions.write(
        "forget_renditions", lambda tx: renditions.remove_old(tx, made_before=made_before)
    ):
        total += removed
    return total


async def _given(flow: Flow, key: RenditionKey, *, of: TensorFile, pieces: _Pieces) -> Content | None:
    found = await flow.transactions.read_one("get_rendition", lambda tx: renditions.get(tx, key))
    if found is None:
        work = partial(_make, flow, key, of=of, pieces=pieces)
        found = await flow.single_flight.run(key, work, patience_seconds=PATIENCE_SECONDS)
    if found is None or found.file is None:
        return None
    form = Form.DELTA if key.kind is RenditionKind.DELTA else Form.ZSTD
    # The digest of its own bytes stands in the tag, because another build of zstd may make others.
    tag = f"{of.digest}:{key.kind}:{found.file.digest.removeprefix('sha256:')[:32]}"
    return Content(key.version, of.digest, b"", found.file.blob_id, 0, found.file.num_bytes, form=form, tag=tag)


def _make(flow: Flow, key: RenditionKey, *, of: TensorFile, pieces: _Pieces) -> RenditionRecord:
    """Makes a rendition and gives what is stored now, which another process may have put there first."""
    upload = BlobUpload(flow.new_id("blob"))
    try:
        digest = _write(flow, upload, pieces(), most=of.num_bytes - of.num_bytes // _LEAST_SAVED)
        file = TensorFile(upload.blob_id, digest, upload.num_bytes)
    except (_NotWorthItError, DeltaError):
        file = None
    except BaseException:
        flow.blobs.discard_blocking(upload)
        raise
    stored = flow.transactions.write_blocking("add_rendition", lambda tx: _add(flow, tx, key, file=file, upload=upload))
    if stored.file is None or stored.file.blob_id != upload.blob_id:
        flow.blobs.discard_blocking(upload)
    return stored


def _add(flow: Flow, tx: WriteTx, key: RenditionKey, *, file: TensorFile | None, upload: BlobUpload) -> RenditionRecord:
    before = renditions.lock(tx, key)
    if before is not None:
        return before
    if file is not None:
        flow.blobs.seal(tx, upload)
    made = RenditionRecord(key, file, tx.now())
    renditions.insert(tx, made)
    return made


def _write(flow: Flow, upload: BlobUpload, pieces: Iterator[bytes], *, most: int) -> str:
    hasher = hashlib.sha256()
    for piece in pieces:
        if flow.wakeups.closed:
            raise _StoppedError
        hasher.update(piece)
        upload.append(piece)
        if upload.num_bytes > most:
            raise _NotWorthItError
        if upload.is_due:
            flow.blobs.flush_blocking(upload)
    flow.blobs.finish_blocking(upload)
    return f"sha256:{hasher.hexdigest()}"


def _compressed(flow: Flow, file: TensorFile) -> Iterator[bytes]:
    """Yields a file as one zstd frame, unless a few samples say that it hardly shrinks."""
    read = partial(flow.blobs.read_blocking, file.blob_id)
    if file.num_bytes > _SAMPLES * _SAMPLE_NUM_BYTES and not _shrinks(read, file.num_bytes):
        raise _NotWorthItError
    compressor = zstd.ZstdCompressor(level=_LEVEL)
    for begin in range(0, file.num_bytes, _PIECE_NUM_BYTES):
        yield compressor.compress(read(begin, min(begin + _PIECE_NUM_BYTES, file.num_bytes)))
    yield compressor.flush()


def _shrinks(read: model_deltas.Read, num_bytes: int) -> bool:
    step = (num_bytes - _SAMPLE_NUM_BYTES) // (_SAMPLES - 1)
    samples = [read(begin, begin + _SAMPLE_NUM_BYTES) for begin in range(0, step * _SAMPLES, step)]
    compressed = sum(len(zstd.compress(sample, _LEVEL)) for sample in samples)
    return compressed * _LEAST_SAVED <= _SAMPLES * _SAMPLE_NUM_BYTES * (_LEAST_SAVED - 1)


def _delta(flow: Flow, base: TensorFile, target: TensorFile) -> Iterator[bytes]:
    readers = [
        ReadAhead(partial(flow.blobs.read_blocking, file.blob_id), num_bytes=file.num_bytes, num_readers=2)
        for file in (base, target)
    ]
    head = DeltaHead(base.digest, target.digest, target.num_bytes)
    return model_deltas.encode(head, base=readers[0], target=readers[1])
