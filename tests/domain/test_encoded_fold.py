"""The fold of encoded updates: the exact mean of what their bytes stand for, whatever the windows and the order."""

import functools
import itertools

import numpy as np
import pytest

from aggregator_service.domain.encoded_runs import widen
from aggregator_service.domain.update_norm import UpdateNorm
from aggregator_service.flow import encoded_windows, windows
from aggregator_service.flow.contributions import open_contributions
from aggregator_service.flow.fold import SealedUpdate, aggregate
from aggregator_service.flow.measures import measure_of
from client_sdk.compression.encoder import encode_delta
from fl_protocol.arrays import decode, encode
from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.streaming import StreamDecoder
from fl_protocol.tensors import parse_header
from fl_protocol.updates import check_update_structure, max_update_bytes, update_header_limit, update_layout
from tests.support.encoded import decoded

MODEL = {
    "conv.weight": np.zeros((5, 3, 3), dtype=np.float32),
    "linear.weight": np.zeros((7, 33), dtype=np.float32),
    "linear.bias": np.zeros(7, dtype=np.float32),
    "empty": np.zeros((0, 20), dtype=np.float32),
    "wide": np.zeros((3, 41), dtype=np.float64),
    "count": np.array([5], dtype=np.int64),
}
FLOATS = {name: values.shape for name, values in MODEL.items() if name != "count"}

ENCODINGS = [
    {"kind": "dense", "dtype": "float32"},
    {"kind": "dense", "dtype": "bfloat16"},
    {"kind": "dense", "dtype": "float16"},
    {"kind": "int8"},
    {"kind": "int4"},
    {"kind": "topk", "fraction": 0.1},
    {"kind": "topk", "count": 3},
    {"kind": "topk", "fraction": 1.0},
    {"kind": "random_mask", "fraction": 0.3},
]
NAMES = ["-".join(str(value) for value in one.values()) for one in ENCODINGS]


def blob_of(tensors, metadata):
    return b"".join(encode(tensors, metadata))


def header_of(blob):
    return parse_header(blob[8 : 8 + int.from_bytes(blob[:8], "little")])


def reader(blob):
    return lambda begin, end: memoryview(blob)[begin:end]


def deltas(seed):
    source = np.random.default_rng(seed)
    made = {name: (source.standard_normal(shape) * 0.01).astype(MODEL[name].dtype) for name, shape in FLOATS.items()}
    return made | {"count": np.array([seed])}


def entropy(seed):
    return lambda count: np.random.default_rng(seed).bytes(count)


def body_of(spec, seed, weight):
    encoded = encode_delta(deltas(seed), spec.encoding, entropy=entropy(seed))
    return blob_of(encoded.tensors, {**encoded.metadata, "num_examples": str(weight)})


def received(spec, body, *, step=None):
    """Takes a body in as the server does, in chunks of so many bytes, and gives its largest |delta| by tensor."""
    layout = update_layout(header_of(blob_of(MODEL, {})), spec)
    measure = measure_of(layout, spec)
    decoder = StreamDecoder(
        max_header_bytes=update_header_limit(layout, spec.encoding),
        max_num_bytes=max_update_bytes(layout, spec.encoding),
        check_header=lambda header: check_update_structure(header, layout, spec.encoding),
    )
    for begin in range(0, len(body), step or len(body)):
        for piece in decoder.feed(body[begin : begin + (step or len(body))]):
            measure(piece)
    decoder.close()
    return measure.max_abs


def sealed(spec, seed, weight):
    body = body_of(spec, seed, weight)
    return SealedUpdate(f"u{seed}", f"sha256:{seed:064}", weight, received(spec, body), reader(body))


def run(spec, updates, **options):
    model = bytearray()
    aggregate(
        reader(blob_of(MODEL, {})),
        updates,
        spec=spec,
        round_number=1,
        optimizer_state=None,
        write_model=model.extend,
        write_state=lambda data: None,
        **options,
    )
    return bytes(model)


@functools.cache
def example(number):
    spec = RunSpec.model_validate({"encoding": ENCODINGS[number]})
    return spec, [sealed(spec, seed, weight) for seed, weight in ((1, 3), (2, 1), (3, 1000))]


@pytest.mark.parametrize("number", range(len(ENCODINGS)), ids=NAMES)
def test_the_mean_is_that_of_what_the_bytes_stand_for(number):
    spec, updates = example(number)
    found = decode(run(spec, updates))
    values = [decoded(bytes(one.read(0, 1 << 30)), FLOATS, ENCODINGS[number]) for one in updates]
    total = sum(one.weight for one in updates)
    for name in FLOATS:
        mean = sum(one.weight * value[name].astype(np.longdouble) for one, value in zip(updates, values, strict=True))
        largest = max(
            one.weight * np.abs(value[name]).max(initial=0) for one, value in zip(updates, values, strict=True)
        )
        mean = (mean / total).astype(np.float64)
        bound = np.maximum(np.spacing(np.abs(mean).astype(MODEL[name].dtype)), 3 * 2.0**-45 * largest / total)
        assert (np.abs(found[name] - mean) <= bound).all(), name
        assert (largest > 0) == (name != "empty")
    assert found["count"] == 5 + round((3 * 1 + 1 * 2 + 1000 * 3) / 1004)


@pytest.mark.parametrize("number", range(len(ENCODINGS)), ids=NAMES)
def test_neither_the_order_nor_the_windows_change_a_bit(number, monkeypatch):
    spec, updates = example(number)
    whole = run(spec, updates)
    assert {run(spec, order) for order in itertools.permutations(updates)} == {whole}
    for size in (1, 10, 37, 64):
        monkeypatch.setattr(windows, "WINDOW_ELEMENTS", size)
        assert run(spec, updates) == whole


@pytest.mark.parametrize("number", range(len(ENCODINGS)), ids=NAMES)
def test_the_largest_delta_is_measured_exactly_however_the_bytes_are_cut(number):
    spec, _ = example(number)
    body = body_of(spec, 1, 3)
    values = decoded(body, FLOATS, ENCODINGS[number])
    expected = {name: float(np.abs(value).max(initial=0)) for name, value in values.items()} | {"count": 1.0}
    assert received(spec, body) == expected
    assert received(spec, body, step=7) == received(spec, body, step=64) == expected


@pytest.mark.parametrize("kind", ["clip", "reject"])
@pytest.mark.parametrize("number", range(len(ENCODINGS)), ids=NAMES)
def test_norms_are_those_of_what_the_bytes_stand_for(number, kind):
    encoding, norms = ENCODINGS[number], []
    plain = RunSpec.model_validate({"encoding": encoding})
    for seed in (1, 2):
        measured = UpdateNorm()
        for name, value in decoded(body_of(plain, seed, 1), FLOATS, encoding).items():
            measured.add(name, value.reshape(-1), dtype="F64")
        norms.append(measured.result())
    bound = {"kind": kind, "norm": norms[0] / 2}
    spec = RunSpec.model_validate({"encoding": encoding, "strategy": {"kind": "mean", "max_update_norm": bound}})
    if kind == "reject":
        with pytest.raises(ProblemError, match="L2 norm over its floating-point tensors"):
            received(spec, body_of(spec, 1, 1))
        return
    updates = [sealed(spec, seed, 1) for seed in (1, 2)]
    found = decode(run(spec, updates))
    values = [decoded(bytes(one.read(0, 1 << 30)), FLOATS, encoding) for one in updates]
    for name in FLOATS:
        clipped = [value[name] * min(1, norms[0] / 2 / norm) for value, norm in zip(values, norms, strict=True)]
        np.testing.assert_allclose(found[name], (clipped[0] + clipped[1]) / 2, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("strategy", ["median", "krum", "geometric_median"])
@pytest.mark.parametrize("number", range(5), ids=NAMES[:5])
def test_strategies_that_compare_clients_see_what_the_bytes_stand_for(number, strategy):
    choice = {"kind": strategy} | ({"num_byzantine": 0} if strategy == "krum" else {})
    spec = RunSpec.model_validate({"encoding": ENCODINGS[number], "strategy": choice, "round": {"quorum": 3}})
    updates = [sealed(spec, seed, 1) for seed in (1, 2, 3)]
    found = decode(run(spec, updates))
    values = [decoded(bytes(one.read(0, 1 << 30)), FLOATS, ENCODINGS[number]) for one in updates]
    for name in FLOATS:
        held = np.stack([value[name] for value in values])
        if strategy == "median":
            np.testing.assert_allclose(found[name], np.median(held, axis=0), rtol=1e-7, atol=0)
        elif strategy == "krum":
            assert any(np.allclose(found[name], one, rtol=1e-7, atol=0) for one in held)
        else:
            assert (found[name] <= held.max(axis=0) + 1e-9).all()
            assert (found[name] >= held.min(axis=0) - 1e-9).all()


def test_indices_are_found_from_any_window_on(monkeypatch):
    monkeypatch.setattr(encoded_windows, "_PAGE_INDICES", 4)
    source, size, count = np.random.default_rng(7), 10_000, 300
    values = np.zeros(size, dtype=np.float32)
    chosen = np.sort(source.choice(size, count, replace=False))
    values[chosen] = source.standard_normal(count)
    body = blob_of({"indices:w": chosen.astype(np.uint32), "w": values[chosen]}, {})
    model = header_of(blob_of({"w": values}, {}))
    encoding = RunSpec.model_validate({"encoding": {"kind": "topk", "count": count}}).encoding
    update = SealedUpdate("u", "d", 1, {"w": 9.0}, reader(body))
    (one,) = open_contributions([update], model, holds=model, encoding=encoding)
    cut = list(windows.windows(model, 777))
    for window in [*cut, *reversed(cut), cut[0], cut[-1], cut[3]]:
        ((segment, held),) = one.runs(window)
        found = np.ones(segment.num_elements, dtype=np.float32)
        widen(held, found)
        np.testing.assert_array_equal(found, values[segment.first : segment.first + segment.num_elements])


def test_a_stored_update_that_is_cut_short_is_noticed():
    for number, name in enumerate(NAMES):
        if "dense" in name:
            continue
        spec, updates = example(number)
        whole = bytes(updates[0].read(0, 1 << 30))
        cut = SealedUpdate("u", "d", 1, updates[0].max_abs, reader(whole[:-1]))
        with pytest.raises(EOFError):
            run(spec, [cut])
