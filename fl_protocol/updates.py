"""What an update must hold, given the base model: the same tensors, and how many examples stand behind them."""

import functools
import json
import re
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from pydantic import TypeAdapter, ValidationError

from fl_protocol.encodings.forms import CONTROL_PREFIX, SCALES_PREFIX, check_encodable, wire_layout
from fl_protocol.encodings.random_mask import SEED_KEY, parse_seed
from fl_protocol.messages import MAX_EXACT_INTEGER, Metrics
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.specs.algorithms import (
    MAX_LOCAL_STEPS,
    Algorithm,
    FedAvgAlgorithm,
    FedNovaAlgorithm,
    ScaffoldAlgorithm,
)
from fl_protocol.specs.encodings import DenseEncoding, Encoding, RandomMaskEncoding
from fl_protocol.specs.parameters import ParametersSpec, matches
from fl_protocol.specs.privacy import (
    MAX_LOCAL_PARAMETERS,
    LocalGaussianPrivacy,
    LocalLaplacePrivacy,
    Privacy,
)
from fl_protocol.specs.skipping import NoSkipping, Skipping
from fl_protocol.tensors import (
    LENGTH_BYTES,
    MAX_NAME_LENGTH,
    Header,
    TensorSpec,
    header_limit,
    refuse_constant,
    strict_object,
)

NUM_EXAMPLES_KEY: Final = "num_examples"
METRICS_KEY: Final = "metrics"
LOCAL_STEPS_KEY: Final = "local_steps"
SKIPPED_KEY: Final = "skipped"
SKIPPED: Final = "true"

_NAMES_SHOWN: Final = 12
_FEDAVG: Final = FedAvgAlgorithm()
_DENSE: Final = DenseEncoding()
_METADATA_ROOM: Final = 64 << 10
_DIGITS: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
_METRICS: Final = TypeAdapter(Metrics)


@dataclass(frozen=True, slots=True)
class UpdateMetadata:
    """What an update says of itself in its safetensors metadata."""

    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    local_steps: int | None = None


class UpdateRules(Protocol):
    """The parts of a run's spec that decide what its updates hold; a RunSpec and a Task have them."""

    @property
    def algorithm(self) -> Algorithm: ...

    @property
    def parameters(self) -> ParametersSpec: ...


class ModelRules(UpdateRules, Protocol):
    """The parts of a run's spec that decide which models it can train; a RunSpec and a Task have them."""

    @property
    def privacy(self) -> Privacy: ...

    @property
    def encoding(self) -> Encoding: ...


def travelling_part(model: Header, rules: UpdateRules) -> Header:
    """Gives the model's tensors that travel in updates, in the model's order, in a header as long as the model's."""
    parameters = rules.parameters
    if parameters.is_everything:
        return model
    names = tuple(spec.name for spec in model.tensors)
    travelling = _travelling(names, tuple(parameters.trainable), tuple(parameters.personal))
    tensors, end = [], 0
    for spec in model.tensors:
        if spec.name in travelling:
            tensors.append(replace(spec, begin=end, end=end + spec.num_bytes))
            end += spec.num_bytes
    return Header(tuple(tensors), {}, model.data_start, model.data_start + end)


@functools.lru_cache(maxsize=32)
def _travelling(names: tuple[str, ...], trainable: tuple[str, ...], personal: tuple[str, ...]) -> frozenset[str]:
    # Asked for each claim and each update of a run: up to 10,000 names by 256 patterns are matched once.
    parameters = ParametersSpec(trainable=list(trainable), personal=list(personal))
    return frozenset(name for name in names if parameters.travels(name))


def check_model(model: Header, rules: ModelRules) -> None:
    """Checks that a model can be trained by a run's rules.

    Raises ProblemError (structure-mismatch) naming the field and the pattern that matches no tensor, or the tensor that
    cannot be trained, or saying that nothing would travel; and what `check_local_parameters` and `check_encodable` do.
    """
    for field_name in () if rules.parameters.is_everything else ("trainable", "personal"):
        for index, pattern in enumerate(getattr(rules.parameters, field_name)):
            if not any(matches(pattern, spec.name) for spec in model.tensors):
                raise _mismatch(
                    f"parameters.{field_name}[{index}] {pattern!r} matches no tensor of the model; "
                    f"it has: {_some_names(model)}"
                )
    if not any(spec.is_float and spec.num_elements for spec in update_layout(model, rules).tensors):
        whose = "" if rules.parameters.is_everything else " that travels by the run's parameters"
        raise _mismatch(f"the model holds no floating-point tensor to train{whose}; it has: {_some_names(model)}")
    check_local_parameters(rules.privacy, num_travelling_floats(model, rules))
    check_encodable(travelling_part(model, rules), rules.encoding)


def num_travelling_floats(model: Header, rules: UpdateRules) -> int:
    """Counts the elements of the model's floating-point tensors that travel: what a private run clips and noises."""
    return sum(spec.num_elements for spec in travelling_part(model, rules).tensors if spec.is_float)


def check_local_parameters(privacy: Privacy, num_parameters: int) -> None:
    """Refuses noise in each message for a model of so many parameters that it drowns every update.

    Raises ProblemError (structure-mismatch) naming the number and the bound, unless the run says `i_understand`.
    """
    if not isinstance(privacy, LocalLaplacePrivacy | LocalGaussianPrivacy) or privacy.i_understand:
        return
    if num_parameters > MAX_LOCAL_PARAMETERS:
        raise _mismatch(
            f"privacy.kind {privacy.kind!r} adds noise to each of the {num_parameters} parameters that travel, in each "
            f"message, and it drowns them; at most {MAX_LOCAL_PARAMETERS} may travel unless privacy.i_understand is "
            "true: train fewer tensors (parameters.trainable), or take 'central_gaussian'"
        )


def floats_of(model: Header) -> Header:
    """Gives the floating-point tensors of a header, in its order."""
    return replace(model, tensors=tuple(spec for spec in model.tensors if spec.is_float))


def _some_names(model: Header) -> str:
    names = ", ".join(repr(spec.name[:64]) for spec in model.tensors[:_NAMES_SHOWN])
    more = len(model.tensors) - _NAMES_SHOWN
    return f"{names}, and {more} more" if more > 0 else names


def update_layout(model: Header, rules: UpdateRules) -> Header:
    """Gives the tensors that an update of this model may hold, in a header that the other functions here take.

    These are the tensors that travel by the run's `parameters`. For SCAFFOLD each floating-point one is joined by its
    control variate, in float32 (float64 where the model's is): a gradient has another range than a weight, and what is
    added up must not be rounded to 8 bits. Raises ProblemError (structure-mismatch) for a model that cannot be trained
    by these rules, naming the tensor.
    """
    model = travelling_part(model, rules)
    if not isinstance(rules.algorithm, ScaffoldAlgorithm):
        return model
    tensors, end = list(model.tensors), model.num_bytes - model.data_start
    for spec in model.tensors:
        _check_has_room_for_control(spec)
        if spec.is_float:
            control = _control_of(spec, begin=end)
            tensors.append(control)
            end = control.end
    # Each control has its tensor's entry over again, with the prefix and longer offsets.
    data_start = 2 * model.data_start + 32 * len(model.tensors)
    return Header(tuple(tensors), model.metadata, data_start, data_start + end)


def control_tensors(layout: Header) -> list[TensorSpec]:
    """Lists the control variates of an update's layout."""
    return [spec for spec in layout.tensors if spec.name.startswith(CONTROL_PREFIX)]


def _control_of(spec: TensorSpec, *, begin: int) -> TensorSpec:
    dtype, size = ("F64", 8) if spec.dtype == "F64" else ("F32", 4)
    return TensorSpec(CONTROL_PREFIX + spec.name, dtype, spec.shape, begin, begin + size * spec.num_elements)


def _check_has_room_for_control(spec: TensorSpec) -> None:
    if spec.name.startswith(CONTROL_PREFIX):
        raise _mismatch(
            f"tensor {spec.name!r} begins with {CONTROL_PREFIX!r}, which SCAFFOLD's own tensors do; rename it"
        )
    if len(CONTROL_PREFIX + spec.name) > MAX_NAME_LENGTH:
        raise _mismatch(
            f"tensor {spec.name[:64]!r}... has a name of {len(spec.name)} characters; with SCAFFOLD's prefix "
            f"{CONTROL_PREFIX!r} at most {MAX_NAME_LENGTH} may travel"
        )


def update_header_limit(layout: Header, encoding: Encoding = _DENSE) -> int:
    """Bounds an update's header: as long as the model's own, whatever its names, with room for the metadata."""
    return _header_limit(wire_layout(layout, encoding))


def _header_limit(wire: Header) -> int:
    return max(header_limit(len(wire.tensors)), wire.data_start - LENGTH_BYTES + _METADATA_ROOM)


def max_update_bytes(layout: Header, encoding: Encoding = _DENSE) -> int:
    """Bounds a whole update's bytes: each tensor that an encoded update may hold, and the largest header."""
    wire = wire_layout(layout, encoding)
    data = sum(spec.num_bytes for spec in wire.tensors if spec.dtype != "BOOL")
    return LENGTH_BYTES + _header_limit(wire) + data


def check_update_structure(header: Header, layout: Header, encoding: Encoding = _DENSE) -> None:
    """Checks that an update holds every floating-point tensor of its layout, as encoded, and nothing else.

    Integer tensors may be left out, BOOL tensors must be. A tensor's scales come before its codes, so that what is
    received can be judged as it comes. Raises ProblemError (structure-mismatch) naming the tensor.
    """
    wire = wire_layout(layout, encoding)
    for spec in header.tensors:
        _check_known(spec, wire.by_name.get(spec.name))
    for expected in wire.tensors:
        if expected.name in header.by_name:
            continue
        plain = layout.by_name.get(expected.name)
        if plain is None or plain.is_float:
            raise _mismatch(f"tensor {expected.name!r} is missing; {_describe(expected)} is expected")
    for spec in header.tensors:
        scales = header.by_name.get(SCALES_PREFIX + spec.name)
        if scales is not None and wire is not layout and scales.begin > spec.begin:
            raise _mismatch(f"tensor {scales.name!r} lies after {spec.name!r}, whose codes it scales; write it first")


def update_seed(header: Header, encoding: Encoding) -> bytes | None:
    """Reads the seed that an update's random mask was drawn with, None where it has none.

    Raises ProblemError (invalid-metadata).
    """
    if not isinstance(encoding, RandomMaskEncoding):
        return None
    text = header.metadata.get(SEED_KEY)
    if text is None:
        raise _invalid(f"{SEED_KEY} is missing from the safetensors metadata")
    seed = parse_seed(text)
    if seed is None:
        raise _invalid(f"{SEED_KEY} {text[:80]!r} must be 64 lower-case hexadecimal digits")
    return seed


def is_skipped(header: Header, skipping: Skipping) -> bool:
    """Tells whether an update says that it is too small to be sent: it has no tensors then and counts as zero.

    Where the run has no skipping the key means nothing beside tensors. Raises ProblemError: invalid-metadata for one
    that the run does not allow, or another value; structure-mismatch naming a tensor that it holds all the same.
    """
    text = header.metadata.get(SKIPPED_KEY)
    if text is None or (header.tensors and isinstance(skipping, NoSkipping)):
        return False
    if isinstance(skipping, NoSkipping):
        raise _invalid(f"{SKIPPED_KEY}: the run's skipping.kind is 'none', so that every update holds its tensors")
    if text != SKIPPED:
        raise _invalid(f"{SKIPPED_KEY} {text[:32]!r} must be {SKIPPED!r}, or left out where tensors are sent")
    if header.tensors:
        raise _mismatch(
            f"tensor {header.tensors[0].name!r} is in an update that says it is {SKIPPED_KEY}; leave it out"
        )
    return True


def update_metadata(header: Header, algorithm: Algorithm = _FEDAVG) -> UpdateMetadata:
    """Reads num_examples, metrics and what the run's algorithm needs from an update's metadata; other keys are ignored.

    Raises ProblemError (invalid-metadata).
    """
    metrics = header.metadata.get(METRICS_KEY)
    counts_steps = isinstance(algorithm, FedNovaAlgorithm)
    return UpdateMetadata(
        num_examples=_count(header, NUM_EXAMPLES_KEY, maximum=MAX_EXACT_INTEGER),
        metrics={} if metrics is None else _parse_metrics(metrics),
        local_steps=_count(header, LOCAL_STEPS_KEY, maximum=MAX_LOCAL_STEPS) if counts_steps else None,
    )


def _count(header: Header, key: str, *, maximum: int) -> int:
    text = header.metadata.get(key)
    if text is None:
        raise _invalid(f"{key} is missing from the safetensors metadata")
    value = int(text) if _DIGITS.fullmatch(text) else 0
    if not 1 <= value <= maximum:
        raise _invalid(f"{key} {text[:32]!r} must be ASCII decimal digits for 1 to {maximum}")
    return value


def _check_known(spec: TensorSpec, expected: TensorSpec | None) -> None:
    if expected is None:
        raise _mismatch(f"tensor {spec.name!r} is not in the base model or does not travel; leave it out")
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
