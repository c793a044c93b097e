"""One helper: it judges a request, notes on its disk whom it tells of, and makes the signed sum of their masks."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import numpy as np

from client_sdk.config import IN_MEMORY_BYTES, PIECE_BYTES
from client_sdk.mask_helper.judgement import Insistence, Judged, judge
from client_sdk.mask_helper.keys import HelperKeys
from client_sdk.mask_helper.release_log import ReleaseLog
from client_sdk.masking.trust import Keys
from fl_protocol.helper_mode import MaskRequestEntry
from fl_protocol.masking import keys
from fl_protocol.masking.mask_requests import mask_sum_message
from fl_protocol.masking.prg import Mask, apply_masks
from fl_protocol.masking.ring import Ring, pack

WINDOW_ELEMENTS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class MaskSum:
    """A helper's answer in its file: the signature, and the packed sum of masks behind it."""

    signature: bytes
    file: IO[bytes]
    num_bytes: int
    sha256: bytes

    def pieces(self, begin: int = 0) -> Iterator[bytes]:
        """Reads the answer from byte `begin` on."""
        yield self.signature[begin:]
        self.file.seek(max(0, begin - len(self.signature)))
        while piece := self.file.read(PIECE_BYTES):
            yield piece


class MaskHelper:
    """What one helper keeps: its keys, whom it believes, and its log of releases in its folder."""

    def __init__(self, keys_: HelperKeys, folder: Path, *, roster: Keys | None, min_members: int) -> None:
        self.keys: Final = keys_
        self.folder: Final = Path(folder)
        self.log: Final = ReleaseLog.open(self.folder)
        self._insists: Final = Insistence(keys=keys_, roster=roster, min_members=min_members)

    def close(self) -> None:
        self.log.close()

    def judge(self, data: bytes, entry: MaskRequestEntry) -> Judged:
        """Looks at a request; raises HelperRefusalError for one that it refuses whatever is left out of it."""
        return judge(data, entry, insists=self._insists, log=self.log)

    def release(self, judged: Judged) -> MaskSum:
        """Notes durably whom it tells of, and gives the answer; of the same set it is the same one every time."""
        if judged.refused:
            raise RuntimeError("a request is answered only if nothing of it was refused")
        self.log.note(judged.release, now=datetime.now(UTC).isoformat())
        request, masks = judged.request, _masks(judged)
        file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(self.folder))  # noqa: SIM115 - it outlives this function
        packed_sum = hashlib.sha256()
        for piece in _packed(masks, ring=judged.ring, num_elements=judged.num_elements):
            file.write(piece)
            packed_sum.update(piece)
        message = mask_sum_message(
            context=request.context,
            helper=request.helper,
            members_digest=request.members_digest,
            sum_digest=packed_sum.digest(),
        )
        signature = keys.sign(self.keys.signing, message)
        return _answer(signature, file)


def _masks(judged: Judged) -> list[Mask]:
    request = judged.request
    return [Mask(keys.helper_mask_key(seed, context=request.context, helper=request.helper)) for seed in judged.seeds]


def _packed(masks: Sequence[Mask], *, ring: Ring, num_elements: int) -> Iterator[bytes]:
    for first in range(0, num_elements, WINDOW_ELEMENTS):
        words = np.zeros(min(WINDOW_ELEMENTS, num_elements - first), dtype=ring.dtype)
        apply_masks(words, masks, first=first)
        yield pack(words, ring.bits)


def _answer(signature: bytes, file: IO[bytes]) -> MaskSum:
    whole, num_bytes = hashlib.sha256(signature), len(signature)
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        whole.update(piece)
        num_bytes += len(piece)
    return MaskSum(signature, file, num_bytes, whole.digest())
