"""What a masked vector holds once its masks are off: clipped, clamped, weighed, quantised, in any windows."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk import TrainedDelta, TrainerError, TrainingTask
from client_sdk.masking import update as windows_of
from client_sdk.masking.terms import MaskedRound
from client_sdk.masking.update import MaskedUpdate, clipping_factor, euclidean_norm
from client_sdk.masking.vector import IN_MEMORY_BYTES, MaskedVector, masked_vector
from client_sdk.session.masked import coordinates_of, masked_update
from fl_protocol.arrays import RawTensor, Tensor, dtype_of, encode
from fl_protocol.masked_vectors import manifest_of, ring_of
from fl_protocol.masking.prg import Mask, remove_masks
from fl_protocol.masking.ring import Ring, signed, unpack
from fl_protocol.runs import RunSpec
from fl_protocol.specs.parameters import ParametersSpec
from fl_protocol.specs.training import TrainingSpec
from fl_protocol.tensors import parse_header

KEY = bytes(range(32))
NORM = 1.0
MASKS = (Mask(b"\1" * 32), Mask(b"\2" * 32, is_subtracted=True))


def spec_of(**changes: Any) -> RunSpec:
    secure = {"kind": "pairwise", "min_members": 3, "clipping_norm": NORM} | changes.pop("secure_aggregation", {})
    given = {"round": {"quorum": 3, "cohort_size": 3, "min_updates": 3}, "secure_aggregation": secure}
    return RunSpec.model_validate(given | changes)


def unmasked(vector: MaskedVector, ring: Ring) -> np.ndarray[Any, Any]:
    with vector.file:
        words = unpack(b"".join(vector.pieces(1000)), ring.bits)
    remove_masks(words, MASKS)
    return signed(words, ring.bits)


def vector_of(update: MaskedUpdate, ring: Ring, folder: Path) -> MaskedVector:
    return masked_vector(update, ring=ring, masks=MASKS, rounding_key=KEY, folder=folder)


def test_a_vector_is_the_same_in_any_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    ring = ring_of(spec)
    values = np.random.default_rng(0).normal(size=700).astype(np.float32) * 0.01
    tensors: list[Tensor] = [
        values[:300].reshape(3, 100),
        RawTensor("BF16", (values[300:350].view(np.uint32) >> 16).astype(np.uint16)),
        values[350:600].astype(np.float64),
        values[600:].astype(np.float16),
        np.empty((0, 4), np.float32),
    ]
    update = MaskedUpdate(tensors=tensors, factor=0.5, weight=3, extras={"weight": 3})
    whole = vector_of(update, ring, tmp_path)
    assert whole.num_bytes == ring.num_bytes(700)
    monkeypatch.setattr(windows_of, "WINDOW_ELEMENTS", 64)
    again = vector_of(update, ring, tmp_path)
    again.file.close()
    assert again.digest == whole.digest
    # What is sent twice is the same both times.
    assert b"".join(whole.pieces(17)) == b"".join(whole.pieces(1 << 20))
    steps = unmasked(whole, ring)
    assert steps[-1] == 3
    np.testing.assert_allclose(steps[:300] * ring.step, 1.5 * values[:300], atol=ring.step)


def test_a_long_vector_waits_on_the_disk_and_leaves_nothing_there(tmp_path: Path) -> None:
    ring = ring_of(spec_of())
    update = MaskedUpdate(
        tensors=[np.zeros(IN_MEMORY_BYTES // 4 + 1, np.float32)], factor=1, weight=1, extras={"weight": 1}
    )
    vector = vector_of(update, ring, tmp_path / "cache")
    assert not unmasked(vector, ring)[:-1].any()
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_the_norm_neither_overflows_nor_vanishes(scale: float) -> None:
    norm = euclidean_norm([np.array([3.0, 0.0]) * scale, np.array([[-4.0]]) * scale])
    assert norm == pytest.approx(5 * scale)
    factor = clipping_factor(norm, clipping_norm=1.0)
    assert norm * factor <= 1 + 1e-12
    assert factor == 1.0 or norm > 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_norm_of_what_is_not_finite_is_infinite(value: float) -> None:
    assert euclidean_norm([np.zeros(2), np.array([0, value], np.float32)]) == np.inf
    assert euclidean_norm([]) == 0.0


def a_task(spec: RunSpec, model: dict[str, Tensor]) -> TrainingTask:
    return TrainingTask(
        run_id="run_" + "0" * 32,
        round=1,
        attempt=1,
        base_version=0,
        model=model,
        training=TrainingSpec(),
        privacy=spec.privacy,
    )


def a_round(spec: RunSpec, model: dict[str, Tensor]) -> MaskedRound:
    content = b"".join(encode(model, {}))
    header = parse_header(content[8 : 8 + int.from_bytes(content[:8], "little")])
    manifest = manifest_of(
        spec,
        header,
        run_id="run_" + "0" * 32,
        round_number=1,
        attempt=1,
        sequence=1,
        previous_digest=None,
        not_after=datetime.now(UTC),
        base_version=0,
        model_digest="sha256:" + "0" * 64,
        model_num_bytes=len(content),
    )
    return MaskedRound(manifest, "sha256:" + "0" * 64, bytes(32), ring_of(spec))


MODEL: dict[str, Tensor] = {
    "w": np.zeros(2, np.float32),
    "steps": np.zeros((), np.int64),
    "v": RawTensor("BF16", np.zeros(1, np.uint16)),
}
DELTA: dict[str, Tensor] = {
    "w": np.array([3, 0], np.float32),
    "steps": np.ones((), np.int64),
    "v": RawTensor("BF16", np.array([0xC080], np.uint16)),
}


def test_an_update_is_clipped_as_one_vector_and_clamped_element_by_element(tmp_path: Path) -> None:
    spec = spec_of(secure_aggregation={"max_abs_delta": 0.7})
    round_ = a_round(spec, MODEL)
    update = masked_update(TrainedDelta(tensors=DELTA, num_examples=200), a_task(spec, MODEL), round_)
    assert (update.norm, update.factor, update.weight, dict(update.extras)) == (5.0, 0.2, 2, {"weight": 2.0})
    steps = unmasked(vector_of(update, round_.ring, tmp_path), round_.ring)
    np.testing.assert_allclose(steps[:3] * round_.ring.step, [1.2, 0, -1.4], atol=round_.ring.step)
    assert steps.size == 4


def test_metrics_leave_only_as_the_run_declares_them() -> None:
    spec = spec_of(secure_aggregation={"metrics": {"loss": {"max_abs": 4.0}, "accuracy": {"max_abs": 1.0}}})
    update = masked_update(
        TrainedDelta(tensors=DELTA, num_examples=300, metrics={"loss": 9.0, "secret": 5.0, "accuracy": 0.5}),
        a_task(spec, MODEL),
        a_round(spec, MODEL),
    )
    assert dict(update.extras) == {"weight": 3.0, "loss": 12.0, "accuracy": 1.5}


PRIVATE = {
    "strategy": {"kind": "mean", "weighting": "uniform"},
    "privacy": {"kind": "central_gaussian", "target_epsilon": 4.0, "delta": 1e-6, "clipping_norm": 0.5},
    "secure_aggregation": {"clipping_norm": None},
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_an_error_without_privacy_and_zero_with_it(value: float, tmp_path: Path) -> None:
    """Whether a client of a private run fails depends on its data, so it must not."""
    broken: dict[str, Tensor] = DELTA | {"w": np.array([1, value], np.float32)}
    result = TrainedDelta(tensors=broken, num_examples=1, metrics={"loss": float("nan")})
    plain = spec_of()
    with pytest.raises(TrainerError, match="tensor 'w' holds NaN or infinity"):
        masked_update(result, a_task(plain, MODEL), a_round(plain, MODEL))
    spec = spec_of(**PRIVATE)
    round_ = a_round(spec, MODEL)
    update = masked_update(result, a_task(spec, MODEL), round_)
    assert not unmasked(vector_of(update, round_.ring, tmp_path), round_.ring).any()
    assert update.weight == 1


def test_a_private_update_is_clipped_to_the_runs_norm(tmp_path: Path) -> None:
    spec = spec_of(**PRIVATE)
    round_ = a_round(spec, MODEL)
    update = masked_update(TrainedDelta(tensors=DELTA, num_examples=0), a_task(spec, MODEL), round_)
    steps = unmasked(vector_of(update, round_.ring, tmp_path), round_.ring)
    np.testing.assert_allclose(steps * round_.ring.step, [0.3, 0, -0.4], atol=round_.ring.step)


@pytest.mark.parametrize("count", [0, -1, "many", 2**53])
def test_a_weighted_mean_needs_a_number_of_examples(count: Any) -> None:
    spec = spec_of()
    with pytest.raises(TrainerError, match="num_examples"):
        masked_update(TrainedDelta(tensors=DELTA, num_examples=count), a_task(spec, MODEL), a_round(spec, MODEL))


def test_coordinates_are_the_floating_point_tensors_that_travel() -> None:
    structure = {name: (dtype_of(tensor), tensor.shape) for name, tensor in MODEL.items()}
    assert [tensor.name for tensor in coordinates_of(structure, ParametersSpec())] == ["w", "v"]
    assert [tensor.name for tensor in coordinates_of(structure, ParametersSpec(personal=["w"]))] == ["v"]
