"""What leaves a client in a private run: clipped (D8), noised where the run says so (D26), and nothing beside it."""

import hashlib
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from client_sdk import (
    ExamplePrivacy,
    Progress,
    RunSpec,
    TrainedDelta,
    TrainedModel,
    TrainerError,
    TrainingTask,
    participate,
)
from client_sdk.privacy.clipping import Norm, clip, clipped_tensors, finite_or_zero
from client_sdk.privacy.local_noise import noised
from client_sdk.session.progress import TrainingFinished, UpdateClipped
from client_sdk.testing import FakeAggregator
from fl_protocol.arrays import RawTensor, Tensor, decode, dtype_of
from fl_protocol.dtypes import as_float64
from fl_protocol.privacy import lattice
from fl_protocol.privacy.accounting import calibrated, epsilon_spent
from fl_protocol.problems import ProblemError
from fl_protocol.specs.parameters import ParametersSpec
from fl_protocol.specs.privacy import MAX_LOCAL_PARAMETERS, LocalGaussianPrivacy, LocalLaplacePrivacy
from fl_protocol.tensors import parse_header, render_header
from fl_protocol.updates import UpdateMetadata, check_model, update_metadata
from tests.client_sdk.test_privacy_claims import KINDS
from tests.client_sdk.test_privacy_policy import private
from tests.support.audits import clopper_pearson

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=64)
NORMS = st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 3.0, 1e9])


def exact_norm(values: np.ndarray[Any, Any], norm: Norm) -> float:
    """The norm in Python's exact fractions, rounded once."""
    parts = [abs(Fraction(float(value))) for value in values.reshape(-1)]
    if norm is Norm.L1:
        total = sum(parts, Fraction(0))
        return float(total) if total < Fraction(10) ** 300 else math.inf
    square = sum((part * part for part in parts), Fraction(0))
    # An integer root of the scaled square: 2^-200 of relative error, whatever the exponent.
    shift = max(0, 400 - square.numerator.bit_length() + square.denominator.bit_length())
    shift += shift % 2
    root = Fraction(math.isqrt(int(square * 2**shift)), 2 ** (shift // 2))
    return float(root) if root < Fraction(10) ** 300 else math.inf


@settings(max_examples=150, deadline=None)
@given(arrays(np.float64, st.integers(0, 8), elements=FLOATS), NORMS, st.sampled_from(Norm))
def test_a_clipped_vector_is_never_longer_whatever_it_was(values: Any, bound: float, norm: Norm) -> None:
    """Huge, denormal, zero: D8 asks for 1e-6, the grid's sensitivity allows for 2^-40, it is 2^-45."""
    clipped = clip({"w": values}, clipping_norm=bound, norm=norm).values["w"]
    assert exact_norm(clipped, norm) <= bound * (1 + 2**-45)
    before = exact_norm(values, norm)
    if before <= bound * (1 - 2**-45):
        np.testing.assert_array_equal(clipped, values)
    elif np.abs(values).min(initial=math.inf) > 1e-290:
        # The direction is kept, and nothing is shortened by more than it must be.
        assert exact_norm(clipped, norm) >= bound * (1 - 2**-45)
        largest = int(np.abs(values).argmax())
        np.testing.assert_allclose(clipped / clipped[largest], values / values[largest], rtol=1e-12, atol=1e-300)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 6), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
    arrays(np.uint16, st.integers(1, 6), elements=st.integers(0, 0x7F7F)),
    NORMS,
)
def test_tensors_of_all_types_are_clipped_as_one_vector(single: Any, brain: Any, bound: float) -> None:
    delta: dict[str, Tensor] = {"single": single, "brain": RawTensor("BF16", brain)}
    clipped, _ = clipped_tensors(delta, clipping_norm=bound)
    assert {name: dtype_of(tensor) for name, tensor in clipped.items()} == {"single": "F32", "brain": "BF16"}
    # Rounding to the tensor's own type may lengthen by half of its last bit: the server clips what arrives itself.
    wide = np.concatenate([wide_of(clipped["single"]), wide_of(clipped["brain"])])
    assert exact_norm(wide, Norm.L2) <= max(bound * (1 + 2**-8), 4 * 2**-133)
    if single.size and not brain.any():
        assert exact_norm(wide_of(clipped["single"]), Norm.L2) <= max(bound * (1 + 1e-6), 4 * 2**-149)


def wide_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    return as_float64(tensor.data if isinstance(tensor, RawTensor) else tensor, dtype_of(tensor))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [*KINDS, "example_dpsgd"])
async def test_what_is_not_finite_becomes_zero_and_is_sent(kind: str, value: float, tmp_path: Path) -> None:
    """Whether a client fails depends on its data, so it must not: one NaN, a NaN loss, and no example at all."""
    fake, told = FakeAggregator(), list[Progress]()
    privacy = KINDS.get(kind, {"kind": "example_dpsgd", "target_epsilon": 4.0, "delta": 1e-6})
    base = {"w": np.zeros(3, np.float32), "v": np.zeros(2, np.float32)}
    run = await fake.start_run(private(privacy, num_rounds=1), base)

    def diverge(task: TrainingTask) -> TrainedModel:
        broken = np.array([1, value, 1], dtype=np.float32)
        return TrainedModel(
            tensors={"w": broken, "v": np.ones(2, np.float32)},
            num_examples=0,
            metrics={"loss": math.nan},
            spent=ExamplePrivacy(1.0, 1e-6),
        )

    async with fake.enrolled("a") as client:
        done = await participate(client, run.run_id, diverge, state_dir=tmp_path, on_event=told.append)
    assert done.num_updates == 1
    (held,) = fake.runs[run.run_id].tasks.values()
    sent = decode(held.update or b"")
    if kind.startswith("local"):
        assert all(np.isfinite(tensor).all() and tensor.any() for tensor in sent.values())
    else:
        assert not any(tensor.any() for tensor in sent.values())
    assert [event.norm for event in told if isinstance(event, UpdateClipped)] == [None] * (kind != "example_dpsgd")


@pytest.mark.parametrize("kind", KINDS)
async def test_an_update_tells_neither_examples_nor_metrics_nor_counters(kind: str, tmp_path: Path) -> None:
    fake, told = FakeAggregator(), list[Progress]()
    base = {"w": np.zeros(3, np.float32), "steps": np.array(0), "seen": np.zeros(1, np.uint8)}
    run = await fake.start_run(private(KINDS[kind], num_rounds=1), base)

    def train(task: TrainingTask) -> TrainedModel:
        moved = {"w": task.model["w"] + np.float32(1), "steps": np.array(2**60), "seen": np.ones(1, np.uint8)}
        return TrainedModel(tensors=moved, num_examples=4321, metrics={"loss": 0.25}, local_steps=17)

    async with fake.enrolled("a") as client:
        await participate(client, run.run_id, train, state_dir=tmp_path, on_event=told.append)
    (held,) = fake.runs[run.run_id].tasks.values()
    body = held.update or b""
    header = parse_header(body[8 : 8 + int.from_bytes(body[:8], "little")])
    assert set(header.by_name) == {"w"}
    assert header.metadata == {"num_examples": "1"}
    assert update_metadata(header) == UpdateMetadata(num_examples=1)
    # The client's own screen may know more.
    assert [event.num_examples for event in told if isinstance(event, TrainingFinished)] == [4321]


async def test_a_tensor_that_is_not_the_models_is_still_a_trainers_error(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(KINDS["central_gaussian"]), {"w": np.zeros(3, np.float32)})
    for wrong in (
        TrainedModel(tensors={"w": np.zeros(4, np.float32)}, num_examples=1),
        TrainedDelta(tensors={}, num_examples=1),
    ):
        async with fake.enrolled("a") as client:
            with pytest.raises(TrainerError, match="tensor 'w'"):
                await participate(client, run.run_id, lambda task: wrong, state_dir=tmp_path)  # noqa: B023


@pytest.mark.parametrize(
    ("kind", "bound"), [("central_gaussian", 0.5), ("central_blt", 0.5), ("central_gaussian_adaptive", 2.0)]
)
async def test_where_the_server_adds_the_noise_the_client_clips_too(kind: str, bound: float, tmp_path: Path) -> None:
    fake, told = FakeAggregator(), list[Progress]()
    norms = {"max_clipping_norm": bound} if kind.endswith("adaptive") else {"clipping_norm": bound}
    run = await fake.start_run(private(KINDS[kind] | norms, num_rounds=1), {"w": np.zeros((2, 2), np.float32)})
    direction = np.array([[3, 0], [0, -4]], np.float32)

    def train(task: TrainingTask) -> TrainedDelta:
        return TrainedDelta(tensors={"w": direction}, num_examples=1)

    async with fake.enrolled("a") as client:
        await participate(client, run.run_id, train, state_dir=tmp_path, on_event=told.append)
    np.testing.assert_allclose(fake.model(run.run_id)["w"], direction / 5 * bound, rtol=1e-6)
    assert [event.norm for event in told if isinstance(event, UpdateClipped)] == [5.0]


async def test_personal_tensors_that_are_not_finite_are_not_kept_and_nothing_fails(tmp_path: Path) -> None:
    fake = FakeAggregator()
    base = {"w": np.zeros(2, np.float32), "own": np.ones(1, np.float32)}
    parameters = ParametersSpec(personal=["own"])
    run = await fake.start_run(private(KINDS["central_gaussian"], num_rounds=2, parameters=parameters), base)
    seen: list[float] = []

    def train(task: TrainingTask) -> TrainedModel:
        seen.append(float(np.asarray(task.model["own"])[0]))
        return TrainedModel(tensors={"w": task.model["w"], "own": np.full(1, np.nan, np.float32)}, num_examples=1)

    async with fake.enrolled("a") as client:
        await participate(client, run.run_id, train, state_dir=tmp_path)
    assert seen == [1.0, 1.0]


LAPLACE = LocalLaplacePrivacy(kind="local_laplace", target_epsilon=1.0, clipping_norm=0.5)
LOCAL_GAUSSIAN = LocalGaussianPrivacy(kind="local_gaussian", target_epsilon=1.0, delta=1e-5, clipping_norm=0.5)


def key(number: int) -> bytes:
    """Keys that make a test the same each time."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


@pytest.mark.parametrize(("privacy", "deviations"), [(LAPLACE, math.sqrt(2)), (LOCAL_GAUSSIAN, 1.0)])
def test_local_noise_is_as_wide_as_twice_the_clipping_norm(
    privacy: LocalLaplacePrivacy | LocalGaussianPrivacy, deviations: float
) -> None:
    """Calibration 2C: any update may stand for any other, so the sensitivity is the diameter, not the radius."""
    zero: dict[str, Tensor] = {"a": np.zeros((300, 500), np.float32), "b": np.zeros(50_000, np.float64)}
    sent, norm = noised(zero, privacy, noise_multiplier=3.0, key=key(0))
    values = np.concatenate([wide_of(tensor).reshape(-1) for tensor in sent.values()])
    width = deviations * 3.0 * 2 * privacy.clipping_norm
    assert norm == 0
    assert abs(values.std() / width - 1) < 0.01
    assert abs(values.mean()) < 5 * width / math.sqrt(values.size)
    # Two tensors of one message, and two messages, share no noise.
    assert abs(np.corrcoef(values[:50_000], values[150_000:])[0, 1]) < 0.03
    again, _ = noised(zero, privacy, noise_multiplier=3.0, key=key(1))
    assert not np.array_equal(again["b"], sent["b"])


@pytest.mark.parametrize("privacy", [LAPLACE, LOCAL_GAUSSIAN])
def test_what_is_sent_is_a_function_of_the_noised_integers_alone(
    privacy: LocalLaplacePrivacy | LocalGaussianPrivacy,
) -> None:
    """Float64 holds step x integer exactly; float32, float16 and bfloat16 are that, rounded once: post-processing."""
    values = np.linspace(-1, 1, 1000)
    wide, _ = noised({"w": values}, privacy, noise_multiplier=2.0, key=key(2))
    integers = np.asarray(wide["w"]) / lattice.step(privacy.clipping_norm)
    assert np.array_equal(integers, np.rint(integers))
    assert np.abs(integers).max() < 2**53
    for dtype in (np.float32, np.float16):
        exact: dict[str, Tensor] = {"w": values.astype(dtype)}
        narrow, _ = noised(exact, privacy, noise_multiplier=2.0, key=key(3))
        same, _ = noised({"w": values.astype(dtype).astype(np.float64)}, privacy, noise_multiplier=2.0, key=key(3))
        np.testing.assert_array_equal(narrow["w"], np.asarray(same["w"]).astype(dtype))
    # What is too large for the type is its largest value, never an infinity that the server would refuse.
    huge = privacy.model_copy(update={"clipping_norm": 1e6})
    sent, _ = noised({"w": np.zeros(1000, np.float16)}, huge, noise_multiplier=2.0, key=key(4))
    assert np.abs(np.asarray(sent["w"])).max() == np.finfo(np.float16).max


def test_the_last_bits_of_a_float32_message_do_not_tell_the_update() -> None:
    """The distinguisher of privacy.md 4.6: of small outputs, how many lie on the grid of 2^-24?"""
    on_grid = []
    privacy = LOCAL_GAUSSIAN.model_copy(update={"clipping_norm": 500.0})
    for value in (0.0, 1.0):
        message: dict[str, Tensor] = {"w": np.full(200_000, value, np.float32)}
        # Of standard deviation 1, as there; floats added to floats give 18% and 100%.
        sent, _ = noised(message, privacy, noise_multiplier=0.001, key=key(int(value)))
        small = np.asarray(sent["w"], np.float64)
        small = small[np.abs(small) < 0.25]
        assert small.size > 20_000
        on_grid.append(float(np.mean(small * 2**24 == np.rint(small * 2**24))))
    assert abs(on_grid[0] - on_grid[1]) < 0.01


NUM_AUDITED = 6_000


@pytest.mark.parametrize(
    ("privacy", "multiplier", "threshold"),
    [
        # At a threshold beyond the clipped values the likelihood ratio of Laplace noise is e^epsilon exactly.
        (LocalLaplacePrivacy(kind="local_laplace", target_epsilon=2.0), 0.5, 1.0),
        (LocalGaussianPrivacy(kind="local_gaussian", target_epsilon=4.4, delta=1e-5), 1.0, 5.0),
    ],
)
def test_an_audit_of_the_sdks_messages_finds_no_more_than_is_claimed_and_at_least_half(
    privacy: LocalLaplacePrivacy | LocalGaussianPrivacy, multiplier: float, threshold: float
) -> None:
    """D10 for local noise: a 95% lower bound of epsilon from messages of two neighbouring updates, +C and -C."""
    spec = RunSpec.model_validate({"privacy": privacy.model_copy(update={"noise_multiplier": multiplier})})
    claimed = epsilon_spent(spec, num_participations=1, num_rounds=1)
    upper, lower = (
        np.array([message(privacy, multiplier, value, number) for number in range(NUM_AUDITED)])
        for value in (1e3, -1e3)
    )
    # Noise is symmetric: both tails are trials of one event, that a message lies beyond the threshold.
    likely = int((upper > threshold).sum() + (lower < -threshold).sum())
    unlikely = int((lower > threshold).sum() + (upper < -threshold).sum())
    trials = 2 * NUM_AUDITED
    delta = getattr(privacy, "delta", 0.0)
    bound = math.log((clopper_pearson(likely, trials)[0] - delta) / clopper_pearson(unlikely, trials)[1])
    assert claimed / 2 <= bound <= claimed, (bound, claimed)


def message(privacy: Any, multiplier: float, value: float, number: int) -> float:
    sent, _ = noised({"w": np.array([value])}, privacy, noise_multiplier=multiplier, key=key(number))
    return float(np.asarray(sent["w"])[0])


@pytest.mark.parametrize(
    ("privacy", "named"),
    [
        ({"kind": "local_laplace", "target_epsilon": 8.0, "scale": 0.01}, "scale"),
        ({"kind": "local_laplace", "scale": 0.01}, "target_epsilon"),
        ({"kind": "local_laplace", "target_epsilon": 8.0, "noise_multiplier": 0.005}, "noise_multiplier"),
    ],
)
def test_the_tutorials_recipe_cannot_be_declared(privacy: dict[str, Any], named: str) -> None:
    """`weights + laplace(0, 0.01)` has no clip, no budget, and with a clip of 1 a multiplier of 0.005."""
    with pytest.raises(ValidationError, match=named):
        RunSpec.model_validate({"privacy": privacy})


def test_a_noise_that_spends_the_whole_budget_at_once_is_refused() -> None:
    spec = RunSpec.model_validate({"privacy": KINDS["local_laplace"] | {"noise_multiplier": 0.01}})
    with pytest.raises(ValueError, match=r"privacy\.noise_multiplier 0\.01 spends epsilon 100 "):
        calibrated(spec)


def test_noise_in_each_message_is_refused_for_more_parameters_than_it_can_serve() -> None:
    def check(num_parameters: int, **fields: Any) -> None:
        header = parse_header(render_header([("frozen", "F32", (50_000,)), ("w", "F32", (num_parameters,))], {})[8:])
        privacy = KINDS["local_gaussian"] | fields
        check_model(header, private(privacy, parameters=ParametersSpec(trainable=["w"])))

    check(MAX_LOCAL_PARAMETERS)
    check(MAX_LOCAL_PARAMETERS + 1, i_understand=True)
    with pytest.raises(ProblemError, match=r"each of the 10001 parameters .* at most 10000 .* privacy\.i_understand"):
        check(MAX_LOCAL_PARAMETERS + 1)


def test_a_delta_that_is_finite_is_left_as_it_is() -> None:
    delta: dict[str, Tensor] = {"w": np.array([1.5], np.float32), "b": RawTensor("BF16", np.array([0x3F80], np.uint16))}
    assert finite_or_zero(delta) == delta
    broken = finite_or_zero(delta | {"w": np.array([np.nan], np.float32)})
    assert not np.asarray(broken["w"]).any()
    assert dtype_of(broken["b"]) == "BF16"
