"""SCAFFOLD's server control variate: the paper's sum over N, exact, and the same bits in any order."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.flow import windows
from aggregator_service.flow.controls import fold_controls
from aggregator_service.flow.fold import ModelOverflowError, SealedUpdate
from fl_protocol.arrays import RawTensor, decode, encode
from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import ScaffoldAlgorithm
from fl_protocol.tensors import parse_header
from fl_protocol.updates import update_layout

MODEL = {
    "w": np.zeros((3, 5), dtype=np.float32),
    "half": RawTensor("BF16", np.zeros(4, dtype=np.uint16)),
    "wide": np.zeros(2),
    "count": np.array([1]),
}
SHAPES = {"w": (3, 5), "half": (4,), "wide": (2,)}


def header_of(blob):
    return parse_header(blob[8 : 8 + int.from_bytes(blob[:8], "little")])


def blob_of(arrays):
    return b"".join(encode(arrays, {}))


LAYOUT = update_layout(header_of(blob_of(MODEL)), RunSpec(algorithm=ScaffoldAlgorithm(num_clients=20)))


def reader(blob):
    return lambda begin, end: memoryview(blob)[begin:end]


def controls_of(source, spread):
    return {
        f"control:{name}": (source.standard_normal(shape) * spread).astype("f8" if name == "wide" else "f4")
        for name, shape in SHAPES.items()
    }


def sealed(source, *, weight=7, spread=1.0):
    controls = controls_of(source, spread)
    blob = blob_of({name: tensor for name, tensor in MODEL.items() if name != "count"} | controls)
    max_abs = {name: float(np.abs(values).max()) for name, values in controls.items()}
    return controls, SealedUpdate("u", "sha256:" + "0" * 64, weight, max_abs, reader(blob))


def fold(updates, *, base=None, num_clients=20):
    written = bytearray()
    fold_controls(
        None if base is None else reader(base), updates, layout=LAYOUT, num_clients=num_clients, write=written.extend
    )
    return bytes(written)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32))
def test_every_update_counts_the_same_and_the_sum_is_divided_by_all_clients(number, seed):
    source = np.random.default_rng(seed)
    made = [
        sealed(source, weight=int(source.integers(1, 10**6)), spread=10.0 ** source.uniform(-6, 1))
        for _ in range(number)
    ]
    first = fold([update for _, update in made])
    found = decode(first)
    assert list(found) == ["control:w", "control:half", "control:wide"]
    for name, values in found.items():
        assert values.dtype == ("f8" if name == "control:wide" else "f4")
        largest = max(Fraction(update.max_abs[name]) for _, update in made)
        for element, value in enumerate(values.flat):
            exact = sum(Fraction(float(controls[name].flat[element])) for controls, _ in made) / 20
            unit = Fraction(float(np.spacing(values.dtype.type(abs(float(exact))))))
            assert abs(Fraction(float(value)) - exact) <= max(unit, number * Fraction(2) ** -45 * largest / 20)
    twice = decode(fold([update for _, update in made], base=first))
    for name, values in twice.items():
        np.testing.assert_allclose(values, 2 * found[name].astype("f8"), rtol=3e-7)


def test_200_arrival_orders_and_any_window_give_the_same_bytes(monkeypatch):
    source = np.random.default_rng(1)
    updates = [sealed(source, spread=10.0 ** source.uniform(-6, 1))[1] for _ in range(12)]
    base = fold(updates)
    expected = fold(updates, base=base)
    for _ in range(200):
        assert fold([updates[at] for at in source.permutation(12)], base=base) == expected
    for window in (1, 4, 17):
        monkeypatch.setattr(windows, "WINDOW_ELEMENTS", window)
        assert fold(updates) == base
        assert fold(updates, base=base) == expected


def test_what_does_not_fit_is_refused_by_name():
    source = np.random.default_rng(2)
    _, update = sealed(source)
    blob = blob_of({name: tensor for name, tensor in MODEL.items() if name != "count"})
    lacking = SealedUpdate("u", "d", 1, update.max_abs, reader(blob))
    with pytest.raises(ProblemError, match="'control:w' is missing"):
        fold([lacking])
    large = blob_of({name: np.full(one.shape, 3e38, one.dtype) for name, one in controls_of(source, 1.0).items()})
    with pytest.raises(ModelOverflowError, match="control:w"):
        fold([sealed(source, spread=1e38)[1]], base=large, num_clients=1)
