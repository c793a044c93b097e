"""The fold of a run that trains a part of its model: that part alone moves, the rest keeps its bytes."""

import numpy as np
import pytest

from aggregator_service.flow import windows
from fl_protocol.arrays import RawTensor, decode
from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.specs.parameters import ParametersSpec
from fl_protocol.specs.server_optimizers import SgdServerOptimizer
from tests.domain.test_fold import blob_of, run, sealed

NAN = np.array([np.nan, -0.0, 1.5], dtype=np.float32)
BASE = {
    "frozen": NAN,
    "head.w": np.array([1, 2, 3], dtype=np.float32),
    "brain": RawTensor("BF16", np.array([0x7FC1, 0x3F80], dtype=np.uint16)),
    "head.count": np.array([5], dtype=np.int64),
    "count": np.array([7], dtype=np.int64),
    "head.b": np.array([0.5], dtype=np.float64),
}
HEAD = ParametersSpec(trainable=["head.*"])


def spec(**optimizer):
    return RunSpec(parameters=HEAD, server_optimizer=SgdServerOptimizer(**optimizer))


def updates():
    return [
        sealed({"head.w": np.full(3, by, np.float32), "head.b": np.full(1, -by)}, weight)
        for by, weight in ((1.0, 1), (4.0, 2))
    ]


@pytest.mark.parametrize("window", [2, 4, 1 << 20])
def test_what_does_not_travel_keeps_its_bytes_and_the_rest_is_the_mean(monkeypatch, window):
    monkeypatch.setattr(windows, "WINDOW_ELEMENTS", window)
    base = blob_of(BASE, {"note": "kept"})
    model, state = run(base, updates(), spec())
    expected = BASE | {"head.w": BASE["head.w"] + np.float32(3), "head.b": BASE["head.b"] - 3}
    assert model == blob_of(expected, {"note": "kept"})
    assert state == b""


@pytest.mark.parametrize("window", [2, 1 << 20])
def test_the_optimizers_state_is_that_of_the_tensors_that_travel(monkeypatch, window):
    monkeypatch.setattr(windows, "WINDOW_ELEMENTS", window)
    momentum = spec(momentum=0.5)
    first, state = run(blob_of(BASE), updates(), momentum)
    assert {name: values.tolist() for name, values in decode(state).items()} == {"head.w": [3.0] * 3, "head.b": [-3.0]}
    second, state = run(first, updates(), momentum, state)
    assert decode(state)["head.w"].tolist() == [4.5] * 3
    assert second == blob_of(BASE | {"head.w": BASE["head.w"] + np.float32(7.5), "head.b": BASE["head.b"] - 7.5})


def test_a_stored_update_with_a_frozen_tensor_is_refused():
    whole = {"head.w": np.zeros(3, np.float32), "head.b": np.zeros(1), "count": np.zeros(1, np.int64)}
    with pytest.raises(ProblemError, match="'count' is not in the base model or does not travel"):
        run(blob_of(BASE), [sealed(whole, 1)], spec())
