"""A client's share of the noise: clipped, on the run's grid, and noised even when it is zero; and what it costs."""

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk.errors import ManifestError, PrivacyBudgetError, PrivacyClaimError
from client_sdk.masking.terms import MaskedRound, check_coordinates
from client_sdk.masking.update import MaskedUpdate, clipping_factor, euclidean_norm
from client_sdk.masking.vector import masked_vector
from client_sdk.privacy.claims import Reviewed, recounted, review
from client_sdk.privacy.history import Outcome, PrivacyHistory
from client_sdk.testing.promises import claim_for
from fl_protocol.manifests import Manifest, ManifestModel, ManifestTensor
from fl_protocol.masked_vectors import ring_of
from fl_protocol.masking.ring import signed, unpack
from fl_protocol.privacy.accounting import calibrated, epsilon_spent
from fl_protocol.privacy.shared_noise import shared_noise
from fl_protocol.runs import RunSpec
from fl_protocol.specs.secure_aggregation import clipping_norm
from fl_protocol.tasks import Task, TaskKind

RUN = "run_" + 32 * "0"
SIZE = 40_000


def spec_of(**privacy: Any) -> RunSpec:
    declared = {"kind": "distributed_skellam", "target_epsilon": 8.0, "delta": 1e-6, "max_parameters": SIZE}
    return calibrated(
        RunSpec.model_validate(
            {
                "num_rounds": 4,
                "round": {"quorum": 8, "cohort_size": 10, "min_updates": 8},
                "strategy": {"kind": "mean", "weighting": "uniform"},
                "privacy": declared | privacy,
                "secure_aggregation": {"kind": "pairwise"},
            }
        )
    )


def noised_coordinates(delta: dict[str, Any], spec: RunSpec, *, key: bytes) -> tuple[Any, float]:
    """Gives the vector of an update as it is masked, with no masks, and the norm that the update had."""
    norm, ring = euclidean_norm(delta.values()), ring_of(spec)
    update = MaskedUpdate(
        tensors=list(delta.values()),
        factor=clipping_factor(norm, clipping_norm=clipping_norm(spec)),
        weight=1,
        extras={},
        noise=shared_noise(spec),
    )
    vector = masked_vector(update, ring=ring, masks=[], rounding_key=key, folder=Path(tempfile.gettempdir()))
    with vector.file:
        packed = b"".join(vector.pieces(1 << 20))
    return signed(unpack(packed, ring.bits), ring.bits), norm


def keys(count: int) -> list[bytes]:
    return [bytes([at, *range(31)]) for at in range(count)]


def test_the_sum_is_the_clipped_sum_with_the_noise_that_is_charged() -> None:
    spec = spec_of(clipping_norm=0.5)
    noise, ring = shared_noise(spec), ring_of(spec)
    draw = np.random.default_rng(5)
    updates = [{"a": draw.standard_normal((SIZE // 4, 3)), "b": draw.standard_normal(SIZE // 4)} for _ in range(9)]
    total, expected = np.zeros(SIZE, dtype=np.int64), np.zeros(SIZE)
    for update, key in zip(updates, keys(9), strict=True):
        delta = {name: values.astype(np.float32) for name, values in update.items()}
        vector, norm = noised_coordinates(delta, spec, key=key)
        whole = np.concatenate([values.reshape(-1).astype(np.float64) for values in delta.values()])
        assert norm == pytest.approx(np.linalg.norm(whole))
        expected += whole * 0.5 / norm
        total += vector
    errors = total * ring.step - expected
    assert errors.std() == pytest.approx(noise.stddev * ring.step * math.sqrt(9), rel=6 / math.sqrt(2 * SIZE))
    assert abs(errors.mean()) < 6 * errors.std() / math.sqrt(SIZE)
    # What the noise of at least eight, less a tenth of them, is made to be.
    multiplier = getattr(spec.privacy, "noise_multiplier", math.nan)
    assert noise.stddev * ring.step * math.sqrt(0.9 * 8) == pytest.approx(multiplier * 0.5)


def test_an_empty_update_is_noise_alone() -> None:
    """What holds NaN or infinity becomes one: its noise is there all the same."""
    spec = spec_of()
    vector, _ = noised_coordinates({"w": np.zeros(SIZE)}, spec, key=bytes(32))
    assert vector.std() == pytest.approx(shared_noise(spec).stddev, rel=0.03)
    assert np.count_nonzero(vector) > SIZE - 100


def test_an_element_is_clamped_where_the_ring_is_made_for_less_than_the_norm() -> None:
    spec = spec_of()
    masked = spec.secure_aggregation.model_copy(update={"max_abs_delta": 0.01})
    spec, delta = spec.model_copy(update={"secure_aggregation": masked}), {"w": np.array([0.5, -0.5])}
    quiet = noised_coordinates({"w": np.zeros(2)}, spec, key=bytes(32))[0]
    moved = noised_coordinates(delta, spec, key=bytes(32))[0] - quiet
    np.testing.assert_allclose(moved, [0.01 / ring_of(spec).step, -0.01 / ring_of(spec).step], atol=1)
    assert np.all(np.abs(moved) <= ring_of(spec).levels)


def test_another_key_gives_another_vector_and_the_update_stays_as_it_was() -> None:
    spec = spec_of()
    values = np.linspace(-1, 1, SIZE)
    vectors = [noised_coordinates({"w": values}, spec, key=key)[0] for key in keys(2)]
    assert np.count_nonzero(vectors[0] == vectors[1]) < SIZE / 100
    np.testing.assert_array_equal(values, np.linspace(-1, 1, SIZE))
    assert noised_coordinates({"w": values}, spec, key=keys(1)[0])[0].tobytes() == vectors[0].tobytes()


def test_a_model_that_the_noise_was_not_made_for_is_refused() -> None:
    spec = spec_of()
    for size in (SIZE, SIZE + 1):
        tensor = ManifestTensor(name="w", dtype="F32", shape=[size], num_elements=size)
        told = ManifestModel.model_construct(tensors=[tensor], num_elements=size)
        manifest = Manifest.model_construct(model=told, spec=spec)
        round_ = MaskedRound(manifest, "sha256:0", b"", ring_of(spec))
        if size == SIZE:
            check_coordinates(round_, [tensor])
            continue
        with pytest.raises(
            ManifestError, match=f"{SIZE + 1}; what the run's noise is made for at most is {SIZE}"
        ) as refused:
            check_coordinates(round_, [tensor])
        assert refused.value.field == "model.num_elements"


def task_of(spec: RunSpec, *, number: int, told: int, **claimed: Any) -> Task:
    claim = claim_for(spec, number=number, participations=told, abandoned=0)
    assert claim is not None
    return Task.model_construct(
        task_id=f"task_{number}",
        kind=TaskKind.TRAIN,
        round=number,
        privacy=spec.privacy,
        algorithm=spec.algorithm,
        parameters=spec.parameters,
        encoding=spec.encoding,
        secure_aggregation=spec.secure_aggregation,
        privacy_claim=claim.model_copy(update=claimed),
    )


def reviewed(spec: RunSpec, history: PrivacyHistory, *, number: int, told: int, **claimed: Any) -> Reviewed:
    return review(task_of(spec, number=number, told=told, **claimed), spec, history.load(), policy=None)


def spent(spec: RunSpec, *sizes: int) -> float:
    return epsilon_spent(spec, num_participations=len(sizes), num_rounds=len(sizes), sums=Counter(sizes))


def take_part(history: PrivacyHistory, number: int, survivors: int | None) -> None:
    history.sending(f"task_{number}", f"sha256:{number}")
    if survivors is not None:
        history.summed(f"task_{number}", f"sha256:{number}", survivors)
        history.answered(f"task_{number}", Outcome.ACCEPTED)


def test_a_client_composes_the_sums_that_it_was_in(tmp_path: Path) -> None:
    spec, history = spec_of(), PrivacyHistory(RUN, tmp_path)
    for number, survivors in ((1, 10), (2, 9)):
        take_part(history, number, survivors)
    again = PrivacyHistory(RUN, tmp_path)
    assert sorted(again.load().survivors.values()) == [9, 10]
    found = reviewed(spec, again, number=3, told=2).spending
    # The next sum is not known yet, and may be as small as one may be.
    assert found is not None
    assert found.epsilon == spent(spec, 8, 9, 10) < spent(spec, 8, 8, 8) <= 8


def test_a_sum_that_may_have_come_of_a_session_counts_as_the_smallest() -> None:
    spec, history = spec_of(), PrivacyHistory(RUN, None)
    take_part(history, 1, 10)
    take_part(history, 2, None)
    found = reviewed(spec, history, number=3, told=1).spending
    assert found is not None
    assert found.epsilon == spent(spec, 8, 8, 10)


def test_a_repeated_session_costs_epsilon_and_no_participation_and_nothing_if_no_masks_came_off(tmp_path: Path) -> None:
    spec, history = spec_of(), PrivacyHistory(RUN, tmp_path)
    history.sending("task_1", "sha256:again")
    for number in (1, 2):
        take_part(history, number, 10)
    found = reviewed(spec, history, number=3, told=2).spending
    assert found is not None
    assert found.epsilon == spent(spec, 8, 8, 10, 10)
    take_part(history, 3, 10)
    with pytest.raises(PrivacyBudgetError, match="by its own count of 5 updates, and the run promised"):
        reviewed(spec, history, number=4, told=3)
    history.summed("task_1", "sha256:again", 0)
    found = reviewed(spec, PrivacyHistory(RUN, tmp_path), number=4, told=3).spending
    assert found is not None
    assert found.epsilon == spent(spec, 8, 10, 10, 10)


def test_another_session_of_the_same_update_is_counted_before_it_is_sent_again() -> None:
    spec, history = spec_of(), PrivacyHistory(RUN, None)
    for number in (1, 2, 3):
        take_part(history, number, 8)
    task = task_of(spec, number=4, told=3)
    accepted = review(task, spec, history.load(), policy=None)
    again = recounted(task, accepted, history.load())
    assert again == accepted.spending
    # The list of its survivors was signed, and what became of the sum this client never learned.
    history.sending("task_4", "sha256:first")
    with pytest.raises(PrivacyBudgetError, match="by its own count of 5 updates"):
        recounted(task, accepted, history.load())
    history.summed("task_4", "sha256:first", 0)
    assert recounted(task, accepted, history.load()) == again


def test_a_server_that_says_less_than_the_sums_cost_is_stopped() -> None:
    spec, history = spec_of(), PrivacyHistory(RUN, None)
    for number in (1, 2):
        take_part(history, number, 9)
    least = spent(spec, 9, 9, 8)
    reviewed(spec, history, number=3, told=2, epsilon_yours=least)
    with pytest.raises(PrivacyClaimError) as refused:
        reviewed(spec, history, number=3, told=2, epsilon_yours=0.999 * least)
    assert refused.value.field == "epsilon_yours"
    # Of two sums that the client was in, and one that the server says counts, that may be the larger one.
    history = PrivacyHistory(RUN, None)
    take_part(history, 1, 10)
    history.sending("task_2", "sha256:2")
    history.summed("task_2", "sha256:2", 8)
    reviewed(spec, history, number=3, told=1, epsilon_yours=spent(spec, 10, 8))
    # A client that has lost its history can hold the server to what no session can be beyond.
    blank = PrivacyHistory(RUN, None)
    reviewed(spec, blank, number=3, told=2, epsilon_yours=spent(spec, 10, 10, 8))
    with pytest.raises(PrivacyClaimError):
        reviewed(spec, blank, number=3, told=2, epsilon_yours=0.999 * spent(spec, 10, 10, 8))
