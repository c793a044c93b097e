"""Conditional and partial downloads (RFC 9110): entity tags and single byte ranges."""

import re
from dataclasses import dataclass
from typing import Final

from fl_protocol.problems import ProblemError, ProblemType

_RANGE: Final = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})", re.ASCII)
_MAX_TAGS: Final = 64


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes [begin, end) of a body."""

    begin: int
    end: int


class UnsatisfiableRangeError(ProblemError):
    """A range that lies behind the body's end."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(
            ProblemType.RANGE_NOT_SATISFIABLE, f"the range begins behind the end; the body has {num_bytes} bytes"
        )
        self.num_bytes = num_bytes


def entity_tag(digest: str) -> str:
    """Gives the strong entity tag of a body with this digest."""
    return f'"{digest}"'


def matches(header: str | None, etag: str) -> bool:
    """Tells whether an If-None-Match header names this entity tag (weak comparison)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",", _MAX_TAGS)[:_MAX_TAGS]]
    return "*" in tags or etag in tags or etag.strip('"') in tags


def requested_range(header: str | None, *, if_range: str | None, etag: str, num_bytes: int) -> ByteRange | None:
    """Reads a single byte range; None where the whole body is to be sent, as for several ranges.

    Raises UnsatisfiableRangeError.
    """
    if header is None or (if_range is not None and if_range.strip() != etag):
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        begin, end = max(0, num_bytes - int(last)), num_bytes
    else:
        begin, end = int(first), min(num_bytes, int(last) + 1) if last else num_bytes
        if last and int(last) < begin:
            return None
    if begin >= num_bytes or begin >= end:
        raise UnsatisfiableRangeError(num_bytes)
    return ByteRange(begin, end)
