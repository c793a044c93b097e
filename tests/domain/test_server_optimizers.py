"""Each server optimizer follows its paper's recursion, in any tiling with the same bits, from what it has stored."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from aggregator_service.domain.server_optimizers import choice
from aggregator_service.flow import fold, windows
from aggregator_service.flow.fold import ModelOverflowError, SealedUpdate, aggregate
from aggregator_service.flow.optimizer_state import OptimizerStateError
from fl_protocol.arrays import RawTensor, decode, encode
from fl_protocol.dtypes import as_float64, from_float64
from fl_protocol.runs import RunSpec
from fl_protocol.specs.server_optimizers import ServerOptimizer

OPTIMIZER = TypeAdapter(ServerOptimizer)

# The recursions as the papers write them: (round's rate, delta, base, memory) -> (new base, new memory).


def plain(rate, delta, x, memory):
    return x + rate * delta, memory


def fedavgm(rate, delta, x, velocity, momentum=0.9):
    velocity = momentum * velocity + delta
    return x + rate * velocity, velocity


def nesterov(rate, delta, x, velocity, momentum=0.8):
    velocity = momentum * velocity + delta
    return x + rate * (delta + momentum * velocity), velocity


def adaptive(second_moment, *, beta1, tau):
    def step(rate, delta, x, memory):
        m, v = (np.zeros_like(x), np.full_like(x, tau**2)) if np.isscalar(memory) else memory
        m = beta1 * m + (1 - beta1) * delta
        v = second_moment(v, delta**2)
        return x + rate * m / (np.sqrt(v) + tau), (m, v)

    return step


def adagrad_moment(v, square):
    return v + square


def adam_moment(v, square, beta2=0.97):
    return beta2 * v + (1 - beta2) * square


def yogi_moment(v, square, beta2=0.97):
    return v - (1 - beta2) * square * np.sign(v - square)


REFERENCES = {
    "fedavg": ({}, plain),
    "fedavgm": ({"kind": "sgd", "momentum": 0.9}, fedavgm),
    "nesterov": ({"momentum": 0.8, "nesterov": True}, nesterov),
    "adagrad": ({"kind": "adagrad", "tau": 0.02}, adaptive(adagrad_moment, beta1=0.0, tau=0.02)),
    "adagrad-beta1": (
        {"kind": "adagrad", "tau": 0.02, "beta1": 0.6},
        adaptive(adagrad_moment, beta1=0.6, tau=0.02),
    ),
    "adam": ({"kind": "adam", "tau": 0.01, "beta2": 0.97}, adaptive(adam_moment, beta1=0.9, tau=0.01)),
    "yogi": (
        {"kind": "yogi", "tau": 0.01, "beta1": 0.7, "beta2": 0.97},
        adaptive(yogi_moment, beta1=0.7, tau=0.01),
    ),
}
SCHEDULES = {
    "constant": ({}, lambda t: 0.3),
    "step": ({"kind": "step", "every": 2, "factor": 0.5}, lambda t: 0.3 * 0.5 ** ((t - 1) // 2)),
    "exponential": ({"kind": "exponential", "factor": 0.9}, lambda t: 0.3 * 0.9 ** (t - 1)),
    "cosine": (
        {"kind": "cosine", "num_rounds": 6, "final_factor": 0.1, "warmup_rounds": 2},
        lambda t: 0.1 * t if t < 3 else 0.3 * (0.1 + 0.45 * (1 + np.cos(np.pi * (t - 3) / 4))),
    ),
}
HALF_UNIT = {"F64": 1e-12, "F32": 2**-24, "F16": 2**-11, "BF16": 2**-8}
"""How far a value rounded once may be from the recursion's, relative to it; float64 is as far as the mean's grid."""
EVERY_OPTIMIZER = pytest.mark.parametrize("name", REFERENCES)


def spec(optimizer, **fields):
    document = {"server_optimizer": {"learning_rate": 0.3} | optimizer} | fields
    return RunSpec.model_validate_json(json.dumps(document))


def reader(blob):
    return lambda begin, end: memoryview(blob)[begin:end]


def blob_of(arrays):
    return b"".join(encode(arrays, {"num_examples": "1"}))


def update_of(arrays):
    max_abs = {name: float(np.abs(numbers(held)).max(initial=0)) for name, held in arrays.items()}
    return SealedUpdate("u", "sha256:" + "0" * 64, 1, max_abs, reader(blob_of(arrays)))


def run(model, deltas, run_spec, *, state=None, round_number=1):
    written, kept = bytearray(), bytearray()
    aggregate(
        reader(model),
        [update_of(deltas)],
        spec=run_spec,
        round_number=round_number,
        optimizer_state=reader(state) if state else None,
        write_model=written.extend,
        write_state=kept.extend,
    )
    return bytes(written), bytes(kept)


def tensor(source, shape, dtype, scale=1.0):
    values = from_float64(source.standard_normal(shape).reshape(-1) * scale, dtype).reshape(shape)
    return RawTensor(dtype, values) if dtype == "BF16" else values


def numbers(held):
    if isinstance(held, RawTensor):
        return as_float64(held.data.reshape(-1), held.dtype)
    return np.asarray(held).reshape(-1).astype(np.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@EVERY_OPTIMIZER
def test_every_optimizer_follows_its_recursion_for_every_type(name, schedule):
    optimizer, reference = REFERENCES[name]
    rates, rate = SCHEDULES[schedule]
    run_spec = spec(optimizer | {"schedule": rates}, num_rounds=6)
    source = np.random.default_rng(1)
    shapes = {"F64": (3, 4), "F32": (7,), "F16": (2, 1, 3), "BF16": (5,)}
    model = {dtype: tensor(source, shape, dtype) for dtype, shape in shapes.items()} | {"steps": np.array([7])}
    memory = dict.fromkeys(shapes, 0.0)
    blob, state = blob_of(model), None
    for round_number in range(1, 7):
        deltas = {dtype: tensor(source, shape, dtype, scale=0.1) for dtype, shape in shapes.items()}
        before = decode(blob)
        blob, state = run(blob, deltas | {"steps": np.array([2])}, run_spec, state=state, round_number=round_number)
        after = decode(blob)
        for dtype in shapes:
            base, delta = numbers(before[dtype]), numbers(deltas[dtype])
            expected, memory[dtype] = reference(rate(round_number), delta, base, memory[dtype])
            np.testing.assert_allclose(numbers(after[dtype]), expected, rtol=HALF_UNIT[dtype], atol=1e-12)
        assert after["steps"] == 7 + 2 * round_number


ELEMENTS = 45


def two_rounds(run_spec, seed):
    source = np.random.default_rng(seed)
    shapes = {
        "a": ((3, 4), "F32"),
        "empty": ((0, 2), "F32"),
        "half": ((9,), "F16"),
        "b": ((), "F64"),
        "c": ((23,), "BF16"),
    }
    model = {name: tensor(source, *one) for name, one in shapes.items()} | {"n": np.array([1, 2])}
    results, blob, state = [], blob_of(model), None
    for number in (1, 2):
        deltas = {name: tensor(source, *one, scale=0.1) for name, one in shapes.items()}
        blob, state = run(blob, deltas, run_spec, state=state, round_number=number)
        results.append((blob, state))
    return results


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 2**32))
@EVERY_OPTIMIZER
def test_neither_window_nor_tile_changes_a_bit(name, window, tile, seed):
    run_spec = spec(REFERENCES[name][0] | {"schedule": {"kind": "exponential", "factor": 0.7}})
    expected = two_rounds(run_spec, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_ELEMENTS", window)
        patch.setattr(fold, "_TILE_ELEMENTS", tile)
        assert two_rounds(run_spec, seed) == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=40), st.integers(1, 5))
@EVERY_OPTIMIZER
def test_an_element_moves_as_if_it_were_alone(name, values, num_rounds):
    optimizer = OPTIMIZER.validate_python(REFERENCES[name][0])
    deltas = np.array(values)
    together = np.zeros(deltas.size), choice.init(optimizer, deltas.size)
    alone = [(np.zeros(1), choice.init(optimizer, 1)) for _ in values]
    for number in range(1, num_rounds + 1):
        together = choice.step_tile(optimizer, number, delta=deltas, base=together[0], states=together[1])
        alone = [
            choice.step_tile(optimizer, number, delta=deltas[at : at + 1], base=base, states=states)
            for at, (base, states) in enumerate(alone)
        ]
    np.testing.assert_array_equal(together[0], np.concatenate([base for base, _ in alone]))
    assert np.isfinite(together[0]).all()
    for slot, kept in enumerate(together[1]):
        np.testing.assert_array_equal(kept, np.concatenate([states[slot] for _, states in alone]))
    if optimizer.kind == "yogi":
        assert (together[1][1] >= 0).all()


@EVERY_OPTIMIZER
def test_an_optimizer_keeps_what_it_names_and_stores_nothing_else(name):
    run_spec = spec(REFERENCES[name][0])
    slots = choice.slots(run_spec.server_optimizer)
    assert len(slots) == {"fedavg": 0, "fedavgm": 1, "nesterov": 1, "adagrad": 1}.get(name, 2)
    state = two_rounds(run_spec, 3)[0][1]
    if not slots:
        assert state == b""
        return
    shapes = {held: array.shape for held, array in decode(state).items()}
    sizes = {"a": 12, "empty": 0, "half": 9, "b": 1, "c": 23}
    assert {held: np.prod(shape, dtype=int) for held, shape in shapes.items()} == {
        held: size * len(slots) for held, size in sizes.items()
    }


def states_of(optimizer, model):
    return run(blob_of(model), model, spec(optimizer))[1]


@pytest.mark.parametrize(
    ("stored", "asked", "said"),
    [
        ("adam", "yogi", "does not belong to yogi: it is of kind adam"),
        ("fedavgm", "adam", "does not belong to adam: it is of kind sgd"),
        ("adagrad", "adagrad-beta1", r"'w' \(F64 of shape \[4\]\) where adagrad keeps 'w' \(F64 of shape \[4, 2\]\)"),
        ("fedavgm", "fedavg", r"'w' \(F64 of shape \[4\]\) where sgd keeps nothing"),
    ],
)
def test_a_state_of_another_optimizer_is_refused(stored, asked, said):
    model = {"w": np.ones(4)}
    state = states_of(REFERENCES[stored][0], model)
    with pytest.raises(OptimizerStateError, match=said):
        run(blob_of(model), model, spec(REFERENCES[asked][0]), state=state)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"w": np.ones((2, 2))}, "keeps 'w'"),
        ({"v": np.ones(4)}, "holds 'v'"),
        ({"w": np.ones(4), "v": np.ones(1)}, "keeps nothing"),
        ({}, "holds nothing"),
    ],
)
@pytest.mark.parametrize("name", ["fedavgm", "yogi"])
def test_a_state_of_another_model_is_refused(name, other, said):
    model, optimizer = {"w": np.ones(4)}, REFERENCES[name][0]
    if name == "yogi" and "w" in other and len(other) == 1:
        other = {"w": np.ones(8)}
    state = states_of(optimizer, {"n": np.array([1])} | other)
    with pytest.raises(OptimizerStateError, match=said):
        run(blob_of(model), model, spec(optimizer), state=state)


@EVERY_OPTIMIZER
def test_what_overflows_is_refused_by_the_tensors_name(name):
    model = {"ok": np.zeros(2), "half": np.array([0, 65504], dtype=np.float16)}
    delta = {"ok": np.zeros(2), "half": np.array([0, 60000], dtype=np.float16)}
    with pytest.raises(ModelOverflowError, match="'half' would not be finite at element 1 in F16"):
        run(blob_of(model), delta, spec(REFERENCES[name][0] | {"learning_rate": 900.0, "schedule": {}}))


def test_a_state_that_overflows_is_refused_though_the_model_would_be_finite():
    model, delta = {"w": np.zeros(2)}, {"w": np.array([0, 1e200])}
    with pytest.raises(ModelOverflowError, match="'w' would not be finite at element 1 in F64"):
        run(blob_of(model), delta, spec(REFERENCES["adagrad"][0]))


@pytest.mark.parametrize("name", ["nesterov", "yogi"])
def test_memory_is_bounded_by_a_window_of_the_states(name):
    run_spec = spec(REFERENCES[name][0])

    def peak(num_windows):
        model = {"w": np.zeros(num_windows << 20, dtype=np.float32)}
        blob, update = blob_of(model), update_of(model)
        state, written = run(blob, model, run_spec)[1], []
        tracemalloc.start()
        aggregate(
            reader(blob),
            [update],
            spec=run_spec,
            round_number=2,
            optimizer_state=lambda begin, end: state[begin:end],
            write_model=lambda data: written.append(len(data)),
            write_state=lambda data: written.append(len(data)),
        )
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    # Three readers, of the model, the update and the state, keep what is left of a chunk of 1 MiB.
    assert peak(6) < peak(3) + (1 << 20) < 48 << 20
