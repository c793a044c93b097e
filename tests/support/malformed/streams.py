"""Right updates sent wrongly: with other digests, media types and codings, too large, or in a bad zstd stream."""

import base64
import hashlib
import sys
from collections.abc import Callable, Iterator

from tests.support.malformed.bodies import (
    Case,
    compressed,
    fixed,
    good_body,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def digests() -> Iterator[Case]:
    body = good_body()
    right = base64.b64encode(hashlib.sha256(body).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(body + b"!").digest()).decode()

    def with_digest(name: str, header: str, slug: str = "invalid-request") -> Case:
        return Case(f"digest-{name}", slug, fixed(body), headers={"Content-Digest": header})

    yield with_digest("of-other-bytes", f"sha-256=:{wrong}:", "digest-mismatch")
    yield with_digest("second-of-two", f"sha-512=:AAAA:, sha-256=:{wrong}:", "digest-mismatch")
    yield with_digest("of-zeros", f"sha-256=:{'A' * 43}=:", "digest-mismatch")
    yield with_digest("in-hexadecimal", f"sha-256={hashlib.sha256(body).hexdigest()}")
    yield with_digest("without-colons", f"sha-256={right}")
    yield with_digest("too-short", "sha-256=:AAAA:")
    yield with_digest("empty", "sha-256=::")
    yield with_digest("nothing", "sha-256=")
    yield with_digest("not-base64", f"sha-256=:{'*' * 44}:")
    coded = compressed(body)
    of_coded = base64.b64encode(hashlib.sha256(coded).digest()).decode()
    headers = {"Content-Encoding": "zstd", "Content-Digest": f"sha-256=:{of_coded}:"}
    yield Case("digest-of-the-compressed-bytes", "digest-mismatch", fixed(coded), headers=headers)


def media_types() -> Iterator[Case]:
    body = good_body()
    for media_type in (
        "",
        "text/plain",
        "application/json",
        "application/x-pickle",
        "application/x-safetensors",
        "multipart/form-data; boundary=x",
        "application/*",
        "*/*",
        "application/octet-stream, application/octet-stream",
        "x" * 5000,
    ):
        label = media_type[:40] or "none"
        yield Case(
            f"media-type-{label}",
            "unsupported-media-type",
            fixed(body),
            ("application/vnd.safetensors",),
            {"Content-Type": media_type},
        )
    for coding in (
        "gzip",
        "br",
        "deflate",
        "compress",
        "x-zstd",
        "zstd, zstd",
        "identity, zstd",
        "aws-chunked",
        "?",
        "",
    ):
        yield Case(
            f"coding-{coding or 'empty'}",
            "unsupported-media-type",
            fixed(body),
            ("zstd",),
            {"Content-Encoding": coding},
        )


def too_large() -> Iterator[Case]:
    size = 8 + 200_000
    yield Case("too-large-by-length", "too-large", lambda: good_body() + bytes(size), as_model="malformed-update")
    yield Case(
        "too-large-in-chunks",
        "too-large",
        lambda: good_body() + bytes(2 << 20),
        as_model="malformed-update",
        chunk_bytes=1 << 16,
    )
    yield Case(
        "too-large-and-no-tensors", "too-large", lambda: b"\xff" * (2 << 20), ("at most",), as_model="malformed-update"
    )


def zstd_streams() -> Iterator[Case]:
    coded = {"Content-Encoding": "zstd"}
    for name, body in _zstd_with_other_bytes().items():
        yield Case(f"zstd-{name}", "malformed-update", fixed(body), headers=coded)
    for name, (body, named) in _zstd_with_a_reason().items():
        yield Case(f"zstd-{name}", "malformed-update", fixed(body), (named,), coded)
    for name, bomb in _BOMBS.items():
        yield Case(f"zstd-bomb-{name}", "too-large", bomb, headers=coded, as_model="malformed-update")


def _zstd_with_other_bytes() -> dict[str, bytes]:
    """Gives streams that decode to something else than one update."""
    whole = good_body()
    frame, empty_frame = compressed(whole), compressed(b"")
    assert zstd.decompress(_frame_with_content_size(whole, len(whole))) == whole
    return {
        "noise": hashlib.sha512(b"zstd").digest(),
        "nothing": b"",
        "two-frames-for-one-body": compressed(whole[:60]) + compressed(whole[60:]),
        "empty-frame": empty_frame,
        "empty-frame-before": empty_frame + frame,
        "skippable-frame-before": _SKIPPABLE + frame,
        "skippable-frame-only": _SKIPPABLE,
        "skippable-frame-of-4-gibibytes": b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(1000),
        "nested": compressed(frame),
        "content-size-too-small": _frame_with_content_size(whole, len(whole) - 1),
        "content-size-too-large": _frame_with_content_size(whole, len(whole) + 1),
        "content-size-2^63": _frame_with_content_size(whole, 1 << 63),
    }


def _zstd_with_a_reason() -> dict[str, tuple[bytes, str]]:
    """Gives streams that are wrong by themselves, with what the refusal must say."""
    whole = good_body()
    frame, empty_frame = compressed(whole), compressed(b"")
    checked = compressed(whole, checksum_flag=1)
    cut = {f"truncated-at-{at}": (frame[:at], "ends before") for at in (1, 4, 5, len(frame) // 2, len(frame) - 1)}
    windows = {f"window-of-2^{log}": (_frame_with_window(whole, log), "window") for log in (24, 27, 31)}
    return (
        cut
        | windows
        | {
            "not-zstd": (whole, "zstd"),
            "gzip-inside": (b"\x1f\x8b\x08" + bytes(64), "zstd"),
            "byte-after": (frame + b"\0", "single frame"),
            "frame-after": (frame + frame, "single frame"),
            "skippable-frame-after": (frame + _SKIPPABLE, "single frame"),
            "7000-empty-frames": (empty_frame * 7_000, "single frame"),
            "7000-empty-frames-after": (frame + empty_frame * 7_000, "single frame"),
            "checksum-broken": (checked[:-1] + bytes([checked[-1] ^ 1]), "zstd"),
            "unknown-dictionary": (b"\x28\xb5\x2f\xfd\x23\x39\x30\0\0\x05\x01\0\0", "zstd"),
            "reserved-bit": (b"\x28\xb5\x2f\xfd\x08\x58\x01\0\0", "zstd"),
        }
    )


def _frame_with_content_size(content: bytes, size: int) -> bytes:
    """Writes one raw block in a single-segment frame (RFC 8878, 3.1.1) that announces any size as its content's."""
    block = ((len(content) << 3) | 1).to_bytes(3, "little") + content
    window = bytes([3 << 3])
    return b"\x28\xb5\x2f\xfd" + bytes([0b1100_0000]) + window + size.to_bytes(8, "little") + block


def _frame_with_window(content: bytes, log: int) -> bytes:
    """Writes one raw block in a frame that asks for a window of 2^log bytes."""
    block = ((len(content) << 3) | 1).to_bytes(3, "little") + content
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + block


def _frame_of_repeats(blocks: int) -> bytes:
    """Writes blocks of 128 KiB of one repeated byte: four bytes on the wire for each (32,768:1)."""
    repeated = [
        ((128 << 10 << 3) | 2 | (number == blocks - 1)).to_bytes(3, "little") + b"\0" for number in range(blocks)
    ]
    return b"\x28\xb5\x2f\xfd\x00" + bytes([7 << 3]) + b"".join(repeated)


def _bomb(beginning: bytes, filler: bytes = b"\0", mebibytes: int = 64) -> bytes:
    compressor = zstd.ZstdCompressor(level=1)
    block = filler * (1 << 20)
    parts = [
        compressor.compress(beginning),
        *(compressor.compress(block) for _ in range(mebibytes)),
        compressor.flush(),
    ]
    return b"".join(parts)


_SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"

_BOMBS: dict[str, Callable[[], bytes]] = {
    "of-zeros": lambda: _bomb(b""),
    "behind-a-good-update": lambda: _bomb(good_body()),
    "in-the-header": lambda: _bomb((60_000).to_bytes(8, "little") + b"{"),
    "of-blanks": lambda: _bomb((90_000).to_bytes(8, "little") + b"{" + b" " * 89_999, b" "),
    "of-a-gibibyte-in-32-kibibytes": lambda: _frame_of_repeats(8192),
    "of-100000-empty-frames": lambda: compressed(b"") * 100_000,
}
