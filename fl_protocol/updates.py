"""What an update must hold, given the base model: the same tensors, and how many examples stand behind them."""

import json
import re
from dataclasses import dataclass, field
from typing import Final

from pydantic import TypeAdapter, ValidationError

from fl_protocol.messages import MAX_EXACT_INTEGER, Metrics
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.tensors import LENGTH_BYTES, Header, TensorSpec, header_limit, refuse_constant, strict_object

NUM_EXAMPLES_KEY: Final = "num_examples"
METRICS_KEY: Final = "metrics"

_METADATA_ROOM: Final = 64 << 10
_DIGITS: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
_METRICS: Final = TypeAdapter(Metrics)


@dataclass(frozen=True, slots=True)
class UpdateMetadata:
    """What an update says of itself in its safetensors metadata."""

    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)


def update_header_limit(model: Header) -> int:
    """Bounds an update's header: as long as the model's own, whatever its names, with room for the metadata."""
    return max(header_limit(len(model.tensors)), model.data_start - LENGTH_BYTES + _METADATA_ROOM)


def max_update_bytes(model: Header) -> int:
    """Bounds a whole update's bytes: each tensor that an update may hold, and the largest header."""
    data = sum(spec.num_bytes for spec in model.tensors if spec.dtype != "BOOL")
    return LENGTH_BYTES + update_header_limit(model) + data


def check_update_structure(header: Header, model: Header) -> None:
    """Checks that an update holds every floating-point tensor of its base model and nothing the model does not know.

    Integer tensors may be left out, BOOL tensors must be. Raises ProblemError (structure-mismatch) naming the tensor.
    """
    for spec in header.tensors:
        _check_known(spec, model.by_name.get(spec.name))
    for expected in model.tensors:
        if expected.is_float and expected.name not in header.by_name:
            raise _mismatch(f"tensor {expected.name!r} is missing; {_describe(expected)} is expected")


def update_metadata(header: Header) -> UpdateMetadata:
    """Reads num_examples and metrics from an update's metadata; other keys are ignored.

    Raises ProblemError (invalid-metadata).
    """
    text = header.metadata.get(NUM_EXAMPLES_KEY)
    if text is None:
        raise _invalid("num_examples is missing from the safetensors metadata")
    num_examples = int(text) if _DIGITS.fullmatch(text) else 0
    if not 1 <= num_examples <= MAX_EXACT_INTEGER:
        raise _invalid(f"num_examples {text[:32]!r} must be ASCII decimal digits for 1 to {MAX_EXACT_INTEGER}")
    metrics = header.metadata.get(METRICS_KEY)
    return UpdateMetadata(num_examples=num_examples, metrics={} if metrics is None else _parse_metrics(metrics))


def _check_known(spec: TensorSpec, expected: TensorSpec | None) -> None:
    if expected is None:
        raise _mismatch(f"tensor {spec.name!r} is not in the base model; leave it out")
    if expected.dtype == "BOOL":
        raise _mismatch(f"tensor {spec.name!r} is BOOL, which has no difference; leave it out")
    if (spec.dtype, spec.shape) != (expected.dtype, expected.shape):
        raise _mismatch(f"tensor {spec.name!r} is {_describe(spec)}; {_describe(expected)} is expected")


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} of shape {list(spec.shape)}"


def _parse_metrics(text: str) -> dict[str, float]:
    try:
        # Read as float, an integer too large for one becomes infinity, which is refused like any other.
        document = json.loads(text, object_pairs_hook=strict_object, parse_int=float, parse_constant=refuse_constant)
        return _METRICS.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"])
        raise _invalid(f"metrics must be a JSON object of finite numbers: {where} {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise _invalid(f"metrics must be a JSON object of finite numbers: {str(error)[:200]}") from None


def _mismatch(detail: str) -> ProblemError:
    return ProblemError(ProblemType.STRUCTURE_MISMATCH, detail)


def _invalid(detail: str) -> ProblemError:
    return ProblemError(ProblemType.INVALID_METADATA, detail)
