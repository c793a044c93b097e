"""A run's plan: bytes and time for a client, a round and the whole run, and what other encodings would cost."""

from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from fl_protocol.planning.links import Link
from fl_protocol.planning.sizes import (
    ZSTD_RATIOS,
    Size,
    download_size,
    skipped_size,
    state_bytes,
    update_size,
    with_encoding,
)
from fl_protocol.planning.storage import Storage, storage_of
from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.specs.encodings import (
    DenseEncoding,
    Encoding,
    Int4Encoding,
    Int8Encoding,
    RandomMaskEncoding,
    SparseEncoding,
    TopKEncoding,
    ZstdCompression,
)
from fl_protocol.specs.skipping import NoSkipping
from fl_protocol.tensors import Header

INTAKE_BYTES_PER_SECOND: Final = 120e6
"""Assumed of one process that makes large updates durable in SQLite; `python -m benchmarks upload` measures it."""

AGGREGATION_BYTES_PER_SECOND: Final = 350e6
"""Assumed of one process that adds up stored updates; `python -m benchmarks eager` measures it."""

_REQUESTS: Final = 3
"""Claim, download, upload: each waits once for the line's latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a run meets: so many clients in all, their lines, how long each trains, how large a model may be."""

    num_clients: int
    down: Link
    up: Link
    local_seconds: float
    max_model_bytes: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of bodies; headers of HTTP and TLS, some hundred for each request, come on top."""

    download: Size
    update: Size
    clients_a_round: int
    received_a_round: int
    sent_a_round: int
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one round, one after the other, and of the run."""

    download: float
    training: float
    upload: float
    aggregation: float
    round: float
    run: float


@dataclass(frozen=True, slots=True)
class Assumption:
    """A constant of `fl_protocol.planning` that estimates rest on: its name, its value and what measures it."""

    name: str
    value: float
    measured_by: str


@dataclass(frozen=True, slots=True)
class Alternative:
    """What the run would cost with another choice of how updates travel; `ratio` is of this run's update."""

    name: str
    update: Size
    ratio: float
    round_seconds: float
    received: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's plan, with what speaks against it."""

    num_rounds: int
    traffic: Traffic
    times: Times
    storage: Storage
    alternatives: tuple[Alternative, ...]
    assumptions: tuple[Assumption, ...]
    warnings: tuple[str, ...]


def plan_run(spec: RunSpec, model: Header, conditions: Conditions) -> Plan:
    """Plans a run whose clients all take part at once and have the same lines, and whose rounds need one attempt.

    Raises ProblemError (structure-mismatch) for a model that the run cannot train.
    """
    traffic = _traffic(spec, model, conditions, update=update_size(model, spec))
    times = _times(spec, model, traffic, conditions)
    counted = min(spec.round.quorum, traffic.clients_a_round)
    return Plan(
        num_rounds=spec.num_rounds,
        traffic=traffic,
        times=times,
        storage=storage_of(spec, model, updates_a_round=counted * traffic.update.num_bytes),
        alternatives=_alternatives(spec, model, traffic, conditions=conditions),
        assumptions=_assumptions(spec.encoding, *(encoding for _, encoding in _encodings(spec.encoding))),
        warnings=_warnings(spec, model, times, conditions=conditions),
    )


def _traffic(spec: RunSpec, model: Header, conditions: Conditions, *, update: Size) -> Traffic:
    # A buffer is filled by as many clients as it has places; a cohort is asked, and answers, as a whole.
    asked = spec.round.quorum if spec.round.kind == "buffered" else spec.round.cohort_size
    clients, download = min(asked, conditions.num_clients), download_size(model, spec)
    received, sent = clients * update.num_bytes, clients * download.num_bytes
    return Traffic(download, update, clients, received, sent, spec.num_rounds * received, spec.num_rounds * sent)


def _times(spec: RunSpec, model: Header, traffic: Traffic, conditions: Conditions) -> Times:
    claim = (_REQUESTS - 2) * conditions.down.latency_seconds
    download = claim + conditions.down.seconds(traffic.download.num_bytes)
    budget = spec.training.max_seconds
    training = conditions.local_seconds if budget is None else min(conditions.local_seconds, budget)
    upload = max(conditions.up.seconds(traffic.update.num_bytes), traffic.received_a_round / INTAKE_BYTES_PER_SECOND)
    counted = min(spec.round.quorum, traffic.clients_a_round)
    read = counted * traffic.update.num_bytes + 2 * (model.num_bytes + state_bytes(model, spec))
    aggregation = read / AGGREGATION_BYTES_PER_SECOND
    whole = download + training + upload + aggregation
    return Times(download, training, upload, aggregation, whole, spec.num_rounds * whole)


def _assumptions(*encodings: Encoding) -> tuple[Assumption, ...]:
    """Lists what the estimates rest on; a constant of a machine or of values, where these may differ."""
    kinds = dict.fromkeys(one.kind for one in encodings if isinstance(one.compression, ZstdCompression))
    return (
        Assumption("INTAKE_BYTES_PER_SECOND", INTAKE_BYTES_PER_SECOND, "python -m benchmarks upload"),
        Assumption("AGGREGATION_BYTES_PER_SECOND", AGGREGATION_BYTES_PER_SECOND, "python -m benchmarks eager"),
        *(Assumption(f"ZSTD_RATIOS[{kind}]", ZSTD_RATIOS[kind], "an update of your own") for kind in kinds),
    )


def _alternatives(spec: RunSpec, model: Header, traffic: Traffic, *, conditions: Conditions) -> tuple[Alternative, ...]:
    """Compares with the encodings that go with the rest of the run, and with an update that is skipped."""
    found = []
    for name, encoding in _encodings(spec.encoding):
        try:
            other = with_encoding(spec, encoding)
            size = update_size(model, other)
        except (ValidationError, ProblemError):
            continue
        found.append((name, other, size))
    if not isinstance(spec.skipping, NoSkipping):
        found.append(("skipped", spec, skipped_size(spec)))
    made = []
    for name, other, size in found:
        its = _traffic(other, model, conditions, update=size)
        times = _times(other, model, its, conditions)
        ratio = size.num_bytes / traffic.update.num_bytes
        made.append(Alternative(name, size, ratio, times.round, its.received))
    return tuple(made)


def _encodings(chosen: Encoding) -> list[tuple[str, Encoding]]:
    others: list[Encoding] = [
        DenseEncoding(),
        DenseEncoding(dtype="bfloat16"),
        Int8Encoding(),
        Int8Encoding(compression=ZstdCompression()),
        Int4Encoding(),
        RandomMaskEncoding(fraction=0.1),
        TopKEncoding(fraction=0.01),
        TopKEncoding(fraction=0.01, compression=ZstdCompression()),
    ]
    return [(describe(other), other) for other in others if other != chosen]


def describe(encoding: Encoding) -> str:
    """Names an encoding in a few words."""
    words: list[str] = [encoding.kind]
    if isinstance(encoding, DenseEncoding) and encoding.dtype != "model":
        words.append(encoding.dtype)
    if isinstance(encoding, SparseEncoding):
        words.append(f"{encoding.fraction:.3g}" if encoding.fraction is not None else str(encoding.count))
    if isinstance(encoding.compression, ZstdCompression):
        words.append("zstd")
    return " ".join(words)


def _warnings(spec: RunSpec, model: Header, times: Times, *, conditions: Conditions) -> tuple[str, ...]:
    said = []
    at_the_client = times.download + times.training + times.upload
    if at_the_client > spec.round.deadline_seconds:
        said.append(
            f"a client needs {at_the_client:.0f} s for download, training and upload, and round.deadline_seconds is "
            f"{spec.round.deadline_seconds:g}: no update would be in time"
        )
    if model.num_bytes > conditions.max_model_bytes:
        said.append(
            f"the model has {model.num_bytes} bytes and the server takes {conditions.max_model_bytes}: raise "
            "FEDQUORUM_MAX_MODEL_BYTES there"
        )
    if conditions.num_clients < spec.round.min_updates:
        said.append(
            f"a round needs {spec.round.min_updates} updates ({spec.round.min_updates_field}) and there are "
            f"{conditions.num_clients} clients: none would complete"
        )
    elif conditions.num_clients < spec.round.quorum:
        said.append(
            f"round.quorum is {spec.round.quorum} and there are {conditions.num_clients} clients: each round would "
            f"wait for its deadline, {spec.round.deadline_seconds:g} s"
        )
    return tuple(said)
