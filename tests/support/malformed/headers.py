"""Bodies whose beginning is wrong: cut, of a lying length, or with a header that is no strict JSON."""

import hashlib
import json
from collections.abc import Iterator

from tests.support.malformed.bodies import (
    UPDATE,
    Case,
    entries,
    fixed,
    framed,
    good_body,
    offsets,
    zeros,
)


def truncated() -> Iterator[Case]:
    whole = good_body()
    data_start = 8 + int.from_bytes(whole[:8], "little")
    cuts = {0, 1, 7, 8, 9, data_start // 2, data_start - 1, data_start, data_start + 1, len(whole) - 1}
    for _, end in offsets(UPDATE).values():
        cuts |= {data_start + end - 1, data_start + end, data_start + end + 1}
    for cut in sorted(cuts):
        if cut < len(whole):
            yield Case(f"truncated-at-{cut}", "malformed-update", fixed(whole[:cut]), ("ends after",))
    yield Case("truncated-in-chunks-of-1", "malformed-update", fixed(whole[:-1]), ("ends after",), chunk_bytes=1)
    yield Case("one-byte-more", "malformed-update", fixed(whole + b"\0"), ("follow the last tensor",))
    yield Case("one-byte-more-in-chunks", "malformed-update", fixed(whole + b"\0"), chunk_bytes=7)
    yield Case("twice", "malformed-update", fixed(whole * 2), ("follow the last tensor",))


def header_lengths() -> Iterator[Case]:
    whole = good_body()
    length = int.from_bytes(whole[:8], "little")
    lies = {
        "0": 0,
        "1": 1,
        "7": 7,
        "2^16": 1 << 16,
        "2^20+1": (1 << 20) + 1,
        "10^8": 10**8,
        "2^31": 1 << 31,
        "2^32": 1 << 32,
        "2^53": 1 << 53,
        "2^63": 1 << 63,
        "2^64-1": (1 << 64) - 1,
        "longer-than-the-body": len(whole) + 1000,
        "one-more": length + 1,
        "one-less": length - 1,
    }
    for name, lie in lies.items():
        body = lie.to_bytes(8, "little") + whole[8:]
        yield Case(f"header-length-{name}", "malformed-update", fixed(body))
    giant = json.dumps({"__metadata__": {"num_examples": "1", "note": "x" * 900_000}, **entries(UPDATE)}).encode()
    yield Case("giant-header", "too-large", fixed(framed(giant, bytes(zeros(UPDATE)))), as_model="")
    yield Case(
        "pickle", "malformed-update", fixed(b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94.")
    )
    yield Case("zip", "malformed-update", fixed(b"PK\x03\x04" + b"\0" * 60))
    yield Case("text", "malformed-update", fixed(b"hello, I am no safetensors file at all\n"))
    yield Case("json", "malformed-update", fixed(b'{"num_examples": 5}'))
    yield Case("noise", "malformed-update", fixed(hashlib.sha512(b"noise").digest() * 20))


def not_json() -> Iterator[Case]:
    plain = json.dumps({"__metadata__": {"num_examples": "1"}, **entries(UPDATE)})
    inner = plain[1:-1]
    wide = json.dumps(entries(UPDATE)["wide"])
    faults: dict[str, bytes] = {
        "array": f"[{plain}]".encode(),
        "string": b'"wide"',
        "number": b"12345",
        "null": b"null",
        "nothing": b"  ",
        "latin-1": plain.replace("wide", "wïde").encode("latin-1"),
        "utf-16": plain.encode("utf-16"),
        "byte-order-mark": plain.encode("utf-8-sig"),
        "space-before": b" " + plain.encode(),
        "newline-after": plain.encode() + b"\n",
        "nul-after": plain.encode() + b"\0",
        "comment": plain[:-1].encode() + b"/* */}",
        "trailing-comma": plain[:-1].encode() + b",}",
        "single-quotes": plain.replace('"', "'").encode(),
        "two-objects": (plain + "{}").encode(),
        "unclosed": plain[:-1].encode(),
        "duplicate-tensor": f'{{{inner}, "wide": {wide}}}'.encode(),
        "duplicate-metadata": f'{{{inner}, "__metadata__": {{"num_examples": "7"}}}}'.encode(),
        "duplicate-num-examples": plain.replace(
            '"num_examples": "1"', '"num_examples": "1", "num_examples": "2"'
        ).encode(),
        "duplicate-dtype": plain.replace('"dtype": "F64"', '"dtype": "F64", "dtype": "F64"').encode(),
        "duplicate-escaped": f'{{{inner}, "\\u0077ide": {wide}}}'.encode(),
        "nan": plain.replace("[0, 140]", "[NaN, 140]").encode(),
        "infinity": plain.replace("[0, 140]", "[0, Infinity]").encode(),
        "minus-infinity": plain.replace("[0, 140]", "[-Infinity, 140]").encode(),
        "1e999": plain.replace("[0, 140]", "[0, 1e999]").encode(),
        "exponent": plain.replace("[0, 140]", "[0, 1.4e2]").encode(),
        "leading-zero": plain.replace("[0, 140]", "[0, 0140]").encode(),
        "5000-digits": plain.replace("[0, 140]", f"[0, {'1' * 5000}]").encode(),
        "deep-arrays": b"[" * 60_000,
        "deep-arrays-closed": b"[" * 30_000 + b"]" * 30_000,
        "deep-objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "deep-in-metadata": f'{{"__metadata__": {{"a": {"[" * 20_000}{"]" * 20_000}}}}}'.encode(),
        "raw-newline-in-name": plain.replace("wide", "wi\nde").encode(),
    }
    for name, header in faults.items():
        yield Case(f"header-is-not-json-{name}", "malformed-update", fixed(framed(header, bytes(zeros(UPDATE)))))
