"""The whole fold: blobs in, the next model's bytes out, against exact arithmetic."""

import itertools
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.flow import windows
from aggregator_service.flow.fold import ModelOverflowError, SealedUpdate, aggregate
from fl_protocol.arrays import RawTensor, decode, dtype_of, encode
from fl_protocol.dtypes import as_float64, from_float64
from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.specs.server_optimizers import SgdServerOptimizer
from fl_protocol.tensors import parse_header


def reader(blob):
    return lambda begin, end: memoryview(blob)[begin:end]


def blob_of(arrays, metadata=None):
    return b"".join(encode(arrays, metadata or {}))


def bits(tensor):
    return tensor.data if isinstance(tensor, RawTensor) else tensor


def wide(tensor):
    dtype = dtype_of(tensor)
    return bits(tensor).astype(np.float64) if dtype[0] in "IU" else as_float64(bits(tensor).reshape(-1), dtype)


def sealed(arrays, weight, identity="u"):
    blob = blob_of(arrays, {"num_examples": str(weight)})
    max_abs = {name: float(np.abs(wide(tensor)).max(initial=0)) for name, tensor in arrays.items()}
    return SealedUpdate(identity, "sha256:" + "0" * 64, weight, max_abs, reader(blob))


def spec(**optimizer):
    return RunSpec(server_optimizer=SgdServerOptimizer(**optimizer))


def run(base, updates, run_spec=None, state=None, round_number=1, begun=None):
    model, next_state = bytearray(), bytearray()
    aggregate(
        reader(base),
        updates,
        spec=run_spec or spec(),
        round_number=round_number,
        optimizer_state=None if state is None else reader(state),
        write_model=model.extend,
        write_state=next_state.extend,
        begun=begun,
    )
    return bytes(model), bytes(next_state)


def example(number, seed, *, size=40, weight=10**6):
    source = np.random.default_rng(seed)
    spread = 10.0 ** source.uniform(-5, 1)
    base = {"w": source.standard_normal(size).astype(np.float32) * spread, "b": np.zeros((2, 2), dtype=np.float32)}
    deltas = [
        {
            "w": (source.standard_normal(size) * 10.0 ** source.uniform(-6, 1)).astype(np.float32),
            "b": source.standard_normal((2, 2)).astype(np.float32),
        }
        for _ in range(number)
    ]
    return base, deltas, [int(one) for one in source.integers(1, weight, number, endpoint=True)]


def exact_mean(deltas, weights, name, element):
    terms = (Fraction(float(wide(d[name]).flat[element])) * w for d, w in zip(deltas, weights, strict=True))
    return sum(terms) / sum(weights)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 100), st.integers(0, 2**32), st.sampled_from([10, 1000, 10**6]))
def test_the_model_is_as_exact_as_the_contract_says(number, seed, weight):
    base, deltas, weights = example(number, seed, size=12, weight=weight)
    updates = [sealed(delta, w) for delta, w in zip(deltas, weights, strict=True)]
    found = decode(run(blob_of(base), updates)[0])
    for name in base:
        largest = max(Fraction(update.max_abs[name]) * update.weight for update in updates)
        coarse = number * Fraction(2) ** -45 * largest / sum(weights)
        for element, value in enumerate(found[name].flat):
            exact = Fraction(float(base[name].flat[element])) + exact_mean(deltas, weights, name, element)
            unit = Fraction(float(np.spacing(np.float32(abs(float(exact))))))
            assert abs(Fraction(float(value)) - exact) <= max(unit, coarse)


def test_200_arrival_orders_give_the_same_bytes():
    base, deltas, weights = example(25, 1)
    updates = [sealed(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
    expected = run(blob_of(base), updates, spec(momentum=0.9))
    source = np.random.default_rng(2)
    for _ in range(200):
        assert run(blob_of(base), [updates[at] for at in source.permutation(25)], spec(momentum=0.9)) == expected


@pytest.mark.parametrize("window", [1, 3, 8, 17, 44, 45, 1000])
def test_the_size_of_a_window_does_not_matter(window, monkeypatch):
    base, deltas, weights = example(5, 3)
    base["n"], base["half"] = np.array([4, 5]), np.ones(3, dtype=np.float16)
    for at, delta in enumerate(deltas):
        delta["half"] = np.full(3, at, dtype=np.float16)
        if at % 2:
            deltas[at] = {"n": np.array([at, -at])} | delta
    updates = [sealed(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
    first = run(blob_of(base), updates, spec(momentum=0.5))
    expected = run(first[0], updates, spec(momentum=0.5), first[1])
    monkeypatch.setattr(windows, "WINDOW_ELEMENTS", window)
    small = run(blob_of(base), updates, spec(momentum=0.5))
    assert small == first
    assert run(small[0], updates, spec(momentum=0.5), small[1]) == expected


def test_momentum_follows_a_float64_reference():
    base, deltas, weights = example(4, 5)
    updates = [sealed(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
    model, state = blob_of(base), None
    expected, velocity = base["w"].astype(np.float64), np.zeros(40)
    for _ in range(5):
        model, state = run(model, updates, spec(learning_rate=0.3, momentum=0.9), state)
        mean = np.array([float(exact_mean(deltas, weights, "w", at)) for at in range(40)])
        velocity = 0.9 * velocity + mean
        expected = (expected + 0.3 * velocity).astype(np.float32).astype(np.float64)
        np.testing.assert_allclose(decode(state)["w"], velocity, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(decode(model)["w"], expected, rtol=3e-7)
        expected = decode(model)["w"].astype(np.float64)


def test_without_momentum_there_is_no_state():
    base, deltas, weights = example(2, 6)
    updates = [sealed(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
    assert run(blob_of(base), updates)[1] == b""


def test_a_state_of_another_model_is_refused():
    base, deltas, weights = example(2, 6)
    updates = [sealed(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
    with pytest.raises(ValueError, match="does not belong"):
        run(blob_of(base), updates, spec(momentum=0.5), blob_of({"w": np.zeros(40)}))


def test_names_order_types_metadata_and_what_is_left_out_are_kept():
    base = {
        "z": np.ones(3, dtype=np.float32),
        "count": np.array(5, dtype=np.int32),
        "left": np.array([1, 2], dtype=np.uint8),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 2), dtype=np.float32),
        "a": np.ones((2, 1)),
    }
    moved = {"a": np.full((2, 1), 2.0), "z": np.full(3, -1, dtype=np.float32), "empty": base["empty"]}
    updates = [sealed(moved | {"count": np.array(3, dtype=np.int32)}, 1), sealed(moved, 5)]
    blob, _ = run(blob_of(base, {"format": "pt", "note": "é"}), updates)
    header = parse_header(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    assert header.metadata == {"format": "pt", "note": "é"}
    assert [(one.name, one.shape) for one in header.tensors if one.num_elements] == [
        (name, array.shape) for name, array in base.items() if array.size
    ]
    found = decode(blob)
    assert {name: array.dtype for name, array in found.items()} == {name: array.dtype for name, array in base.items()}
    assert found["count"] == 8
    assert found["z"].tolist() == [0, 0, 0]
    assert found["a"].tolist() == [[3.0], [3.0]]
    for name in ("left", "mask"):
        np.testing.assert_array_equal(found[name], base[name])


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_every_type_is_rounded_once(dtype):
    source = np.random.default_rng(8)

    def tensor(scale):
        values = from_float64(source.standard_normal(300) * scale, dtype)
        return RawTensor(dtype, values) if dtype == "BF16" else values

    base, deltas = {"w": tensor(1.0)}, [{"w": tensor(0.1)} for _ in range(3)]
    weights = [1, 2, 5]
    updates = [sealed(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
    found = decode(run(blob_of(base), updates)[0])["w"]
    mean = np.array([float(exact_mean(deltas, weights, "w", at)) for at in range(300)])
    if dtype == "F64":
        np.testing.assert_allclose(found, base["w"] + mean, rtol=0, atol=3 * 2.0**-45)
        return
    single = torch.from_numpy(wide(base["w"]) + mean)
    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    np.testing.assert_array_equal(wide(found), single.to(kind).to(torch.float64).numpy())


def test_a_model_that_cannot_hold_its_values_is_refused_by_the_tensors_name():
    base = {"ok": np.ones(2, dtype=np.float32), "half": np.array([0, 65000], dtype=np.float16)}
    delta = {"ok": np.ones(2, dtype=np.float32), "half": np.array([1, 1000], dtype=np.float16)}
    with pytest.raises(ModelOverflowError, match="'half' would not be finite at element 1 in F16") as caught:
        run(blob_of(base), [sealed(delta, 1)])
    assert caught.value.tensor == "half"


def test_a_stored_update_that_does_not_fit_the_model_is_refused():
    base, deltas, _ = example(1, 9)
    with pytest.raises(ProblemError, match="structure-mismatch"):
        run(blob_of(base), [sealed({"w": deltas[0]["w"]}, 1)])
    broken = blob_of(deltas[0])[:-1]
    with pytest.raises(EOFError):
        run(blob_of(base), [SealedUpdate("u", "d", 1, {"w": 1.0, "b": 1.0}, reader(broken))])
    with pytest.raises(ValueError, match="at least one"):
        run(blob_of(base), [])


def test_small_tensors_are_read_together():
    base = {f"t{at}": np.ones(10, dtype=np.float32) for at in range(100)}
    update, reads = sealed(base, 1), itertools.count()

    def counted(begin, end):
        next(reads)
        return update.read(begin, end)

    run(blob_of(base), [SealedUpdate("u", "d", 1, update.max_abs, counted)])
    assert next(reads) == 3


def test_memory_is_bounded_by_a_window():
    size = 3 << 20
    base = blob_of({"w": np.zeros(size, dtype=np.float32)})
    update = sealed({"w": np.ones(size, dtype=np.float32)}, 1)
    written = []

    def peak(number):
        tracemalloc.start()
        aggregate(
            reader(base),
            [update] * number,
            spec=spec(),
            round_number=1,
            optimizer_state=None,
            write_model=lambda data: written.append(len(data)),
            write_state=written.append,
        )
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(1) < 24 << 20
    assert peak(20) < 24 << 20
