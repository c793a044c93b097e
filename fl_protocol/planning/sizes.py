"""How many bytes a model, an update and what the server keeps of them have: exactly, but for what is compressed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fl_protocol.dtypes import CARRIERS
from fl_protocol.encodings.forms import tensors_of
from fl_protocol.encodings.random_mask import SEED_BYTES, SEED_KEY
from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import FedNovaAlgorithm, ScaffoldAlgorithm
from fl_protocol.specs.encodings import DenseEncoding, Encoding, RandomMaskEncoding, ZstdCompression
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.secure_aggregation import is_masked
from fl_protocol.specs.server_optimizers import AdagradServerOptimizer, SgdServerOptimizer
from fl_protocol.tensors import LENGTH_BYTES, Header, TensorSpec, parse_header, render_header
from fl_protocol.updates import (
    LOCAL_STEPS_KEY,
    METRICS_KEY,
    NUM_EXAMPLES_KEY,
    SKIPPED,
    SKIPPED_KEY,
    control_tensors,
    num_travelling_floats,
    update_layout,
)

TYPICAL_METADATA: Final[Mapping[str, str]] = {
    NUM_EXAMPLES_KEY: "10000",
    METRICS_KEY: '{"loss": 0.12345678901234568, "accuracy": 0.9876543210987654}',
}
"""What TorchTrainer's updates say of themselves; other metadata makes a header some bytes longer or shorter."""

ZSTD_RATIOS: Final[Mapping[str, float]] = {
    "dense": 0.86,
    "int8": 0.92,
    "int4": 0.79,
    "topk": 0.60,
    "random_mask": 0.91,
}
"""What byte shuffle and zstd leave of normally distributed values, which compress badly; real updates vary."""

_TASK_ID: Final = "task_" + 32 * "0"
_STATE_BYTES: Final = 8
_SIGNED: Final = frozenset({"I64", "I32", "I16", "I8"})


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes, and whether it is known or an estimate."""

    num_bytes: int
    is_exact: bool = True


def model_of(num_parameters: int) -> Header:
    """Gives the header of a model with so many float32 parameters in one tensor."""
    head = render_header([("parameters", "F32", (num_parameters,))], {})
    return parse_header(head[LENGTH_BYTES:])


def download_size(model: Header, spec: RunSpec) -> Size:
    """Gives what a client downloads for a task: the whole model, and SCAFFOLD's control variate from round 2 on."""
    if not isinstance(spec.algorithm, ScaffoldAlgorithm):
        return Size(model.num_bytes)
    controls = control_tensors(update_layout(model, spec))
    head = render_header([(one.name, one.dtype, one.shape) for one in controls], {})
    return Size(model.num_bytes + len(head) + sum(one.num_bytes for one in controls), is_exact=False)


def update_size(model: Header, spec: RunSpec, *, metadata: Mapping[str, str] = TYPICAL_METADATA) -> Size:
    """Gives the size of an update as the SDK writes it: exact, given its metadata, unless it is compressed or masked.

    Raises ProblemError for a model that cannot be trained by the run's rules.
    """
    if is_masked(spec):
        return _masked_size(model, spec)
    encoding = spec.encoding
    tensors = [one for spec_ in _sent(model, spec) for one in tensors_of(spec_, encoding)]
    if encoding != DenseEncoding(compression=encoding.compression):
        tensors.sort(key=lambda one: -CARRIERS[one[1]].itemsize)
    head = render_header(tensors, _metadata(spec, metadata))
    # The header of the whole says where its data ends.
    num_bytes = parse_header(head[LENGTH_BYTES:]).num_bytes
    if isinstance(encoding.compression, ZstdCompression):
        return Size(round(num_bytes * ZSTD_RATIOS[encoding.kind]), is_exact=False)
    return Size(num_bytes)


def skipped_size(spec: RunSpec, *, metadata: Mapping[str, str] = TYPICAL_METADATA) -> Size:
    """Gives the size of an update that is skipped."""
    return Size(len(render_header([], {**_metadata(spec, metadata), SKIPPED_KEY: SKIPPED, "task": _TASK_ID})))


def state_bytes(model: Header, spec: RunSpec) -> int:
    """Gives about what the server optimizer's state has: float64 for each element that travels and array it keeps."""
    return num_arrays(spec) * _STATE_BYTES * num_travelling_floats(model, spec)


def num_arrays(spec: RunSpec) -> int:
    """Tells how many arrays the server optimizer keeps from round to round."""
    optimizer = spec.server_optimizer
    match optimizer:
        case SgdServerOptimizer():
            return int(optimizer.momentum > 0)
        case AdagradServerOptimizer():
            return 1 + int(optimizer.beta1 > 0)
        case _:
            return 2


def _sent(model: Header, spec: RunSpec) -> list[TensorSpec]:
    """Lists what the SDK sends: floating-point tensors, and signed counters in a run without privacy."""
    is_plain = isinstance(spec.privacy, NoPrivacy)
    layout = update_layout(model, spec).tensors
    return [one for one in layout if one.is_float or (is_plain and one.dtype in _SIGNED)]


def _metadata(spec: RunSpec, metadata: Mapping[str, str]) -> dict[str, str]:
    told = dict(metadata) if isinstance(spec.privacy, NoPrivacy) else {NUM_EXAMPLES_KEY: "1"}
    if isinstance(spec.algorithm, FedNovaAlgorithm):
        told.setdefault(LOCAL_STEPS_KEY, "1000")
    if isinstance(spec.encoding, RandomMaskEncoding):
        told[SEED_KEY] = 2 * SEED_BYTES * "0"
    return told


def _masked_size(model: Header, spec: RunSpec) -> Size:
    # Masks need the extra [privacy], which nobody else shall have to install.
    from fl_protocol.masked_vectors import coordinates_of, ring_of  # noqa: PLC0415

    ring = ring_of(spec)
    num_coordinates = sum(one.num_elements for one in coordinates_of(model, spec).tensors)
    return Size(ring.num_bytes(num_coordinates), is_exact=False)


def with_encoding(spec: RunSpec, encoding: Encoding) -> RunSpec:
    """Gives the run with another encoding; raises pydantic's ValidationError where that does not go with the rest."""
    return RunSpec.model_validate({**dict(spec), "encoding": encoding})
