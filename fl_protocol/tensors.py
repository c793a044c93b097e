"""The safetensors header, read without trusting it and written in the library's own form.

Format: 8 bytes little-endian header length, the header as JSON, the tensors' bytes without holes.
Source: https://github.com/huggingface/safetensors#format. Everything that cannot be relied on raises ProblemError
(malformed-update) naming the tensor.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NoReturn

from fl_protocol.dtypes import CARRIERS, FLOAT_FORMATS
from fl_protocol.problems import ProblemError, ProblemType

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 1 << 20
MAX_RANK: Final = 8
MAX_INTEGER: Final = 1 << 40
MAX_NAME_LENGTH: Final = 512
MAX_METADATA_ENTRIES: Final = 1024
_MAX_DIGITS: Final = len(str(MAX_INTEGER))
_METADATA_KEY: Final = "__metadata__"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a file; `begin` and `end` are byte offsets within the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOAT_FORMATS


# Not slotted: `by_name` is kept once it was asked for.
@dataclass(frozen=True)
class Header:
    """A checked header: tensors in the order of their bytes, metadata, where the data starts, the whole file's size."""

    tensors: tuple[TensorSpec, ...]
    metadata: dict[str, str]
    data_start: int
    num_bytes: int

    @cached_property
    def by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.tensors}

    @property
    def num_parameters(self) -> int:
        return sum(spec.num_elements for spec in self.tensors)


def header_limit(num_tensors: int) -> int:
    """Bounds the bytes of a header that describes so many tensors."""
    return min(MAX_HEADER_BYTES, (64 << 10) + 256 * num_tensors)


def malformed(detail: str) -> ProblemError:
    """Makes the error for bytes that are not a safetensors file that can be relied on."""
    return ProblemError(ProblemType.MALFORMED_UPDATE, detail)


def header_length(prefix: bytes, max_header_bytes: int = MAX_HEADER_BYTES) -> int:
    """Reads the first 8 bytes of a file: the length of the header that follows them."""
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= max_header_bytes:
        raise malformed(
            f"the first 8 bytes announce a header of {length} bytes; between 2 and {max_header_bytes} are accepted"
        )
    return length


def parse_header(json_bytes: bytes) -> Header:
    """Checks a header, without the 8 bytes of its length, and gives the tensors in the order of their bytes.

    Raises ProblemError (malformed-update) for anything that is not strict JSON, for types and shapes that may not
    travel, and for offsets that leave holes, overlap or do not fit the shape.
    """
    document = _load_json(json_bytes)
    metadata = _check_metadata(document.pop(_METADATA_KEY, {}))
    tensors = sorted(
        (_check_tensor(name, entry) for name, entry in document.items()), key=lambda spec: (spec.begin, spec.end)
    )
    cursor = 0
    for spec in tensors:
        if spec.begin != cursor:
            relation = "overlaps what lies before it" if spec.begin < cursor else "leaves a hole before it"
            raise malformed(
                f"tensor {spec.name!r} begins at byte {spec.begin} and {relation}; it must begin at {cursor}"
            )
        cursor = spec.end
    data_start = LENGTH_BYTES + len(json_bytes)
    return Header(tensors=tuple(tensors), metadata=metadata, data_start=data_start, num_bytes=data_start + cursor)


def render_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Writes the 8 length bytes and the header for tensors (name, dtype, shape) that follow in the order given.

    The data section starts at a multiple of 8 bytes, as the safetensors library has it.
    """
    document: dict[str, object] = {_METADATA_KEY: dict(metadata)} if metadata else {}
    cursor = 0
    for name, dtype, shape in tensors:
        if name in document or name == _METADATA_KEY:
            raise ValueError(f"tensor name {name!r} occurs twice or is reserved")
        begin, cursor = cursor, cursor + CARRIERS[dtype].itemsize * math.prod(shape)
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, cursor]}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    padded = text + b" " * (-len(text) % 8)
    return len(padded).to_bytes(LENGTH_BYTES, "little") + padded


def strict_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object and refuses a key that occurs twice (RFC 8259 leaves the meaning open)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0][:64]!r} occurs twice")
    return result


def refuse_constant(text: str) -> NoReturn:
    """Refuses NaN and Infinity, which Python's reader accepts and JSON does not have."""
    raise ValueError(f"{text} is not JSON")


def _refuse_float(text: str) -> NoReturn:
    raise ValueError(f"{text[:32]} is not an integer")


def _bounded_integer(text: str) -> int:
    if len(text) > _MAX_DIGITS or not 0 <= int(text) <= MAX_INTEGER:
        raise ValueError(f"the number {text[:32]} is outside 0..{MAX_INTEGER}")
    return int(text)


def _load_json(json_bytes: bytes) -> dict[str, Any]:
    try:
        document = json.loads(
            json_bytes.decode("utf-8"),
            object_pairs_hook=strict_object,
            parse_int=_bounded_integer,
            parse_float=_refuse_float,
            parse_constant=refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise malformed(f"the header is not the JSON object of a safetensors file: {reason}") from None
    # The format has the header start with its brace and end in nothing but spaces.
    if not isinstance(document, dict) or json_bytes[:1] != b"{" or not json_bytes.rstrip(b" ").endswith(b"}"):
        raise malformed(
            "the header must be one JSON object that starts with '{' and is padded with spaces at its end only"
        )
    return document


def _check_name(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise malformed(f"tensor name {name[:64]!r} must be 1 to {MAX_NAME_LENGTH} printable characters")
    return name


def _check_metadata(entry: object) -> dict[str, str]:
    if not isinstance(entry, dict) or len(entry) > MAX_METADATA_ENTRIES:
        raise malformed(f"__metadata__ must be an object of at most {MAX_METADATA_ENTRIES} strings")
    for key, value in entry.items():
        if not 0 < len(key) <= MAX_NAME_LENGTH or not key.isprintable():
            raise malformed(f"__metadata__ key {key[:64]!r} must be 1 to {MAX_NAME_LENGTH} printable characters")
        if not isinstance(value, str) or not _is_storable(value):
            raise malformed(f"__metadata__ {key[:64]!r} must be a string of valid Unicode without NUL")
    return entry


def _is_storable(text: str) -> bool:
    # A lone surrogate has no UTF-8, and databases refuse NUL in text.
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _check_tensor(name: str, entry: object) -> TensorSpec:
    _check_name(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise malformed(f"tensor {name!r} must have exactly the keys dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in CARRIERS:
        raise malformed(f"tensor {name!r} has the type {str(dtype)[:32]!r}; accepted are {', '.join(CARRIERS)}")
    if not _is_integers(shape) or len(shape) > MAX_RANK:
        raise malformed(f"tensor {name!r} must have a shape of at most {MAX_RANK} integers")
    if not _is_integers(offsets) or len(offsets) != 2:
        raise malformed(f"tensor {name!r} must have two integers as data_offsets")
    num_bytes = math.prod(shape) * CARRIERS[dtype].itemsize
    if num_bytes > MAX_INTEGER:
        raise malformed(f"tensor {name!r} of {num_bytes} bytes is larger than {MAX_INTEGER} bytes")
    if offsets[1] - offsets[0] != num_bytes:
        raise malformed(f"tensor {name!r} of {num_bytes} bytes cannot lie at data_offsets {offsets}")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(shape), begin=offsets[0], end=offsets[1])


def _is_integers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
