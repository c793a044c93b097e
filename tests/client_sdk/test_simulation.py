"""A simulated federation: real server, many clients, reproducible, bounded, and honest about what goes wrong."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from client_sdk import EvaluationReport, RoundSpec, RunFailedError, RunSpec, TrainedModel, TrainingTask, simulate
from client_sdk.errors import UsageError
from client_sdk.session.progress import HelpersTrusted, Progress, UpdateAccepted, UpdateCounted
from client_sdk.session.work import Trainer
from client_sdk.simulation import SimulatedRound, Simulation
from fl_protocol.masked_vectors import ring_of
from fl_protocol.specs.evaluation import EvaluationSpec
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation, MaskHelper, PairwiseSecureAggregation

MODEL = {"w": np.zeros(4, dtype=np.float32)}
SPEC = RunSpec(name="small", num_rounds=3, round=RoundSpec(quorum=5, cohort_size=7))


def walker(index: int) -> Trainer:
    """Moves the model by a step that depends on the client and the round alone."""

    def train(task: TrainingTask) -> TrainedModel:
        step = np.random.default_rng([index, task.round]).normal(size=4).astype(np.float32)
        return TrainedModel(tensors={"w": task.model["w"] + step}, num_examples=index + 1, metrics={"loss": index})

    return train


def norm(model: dict[str, np.ndarray]) -> dict[str, float]:
    return {"norm": float(np.linalg.norm(model["w"]))}


async def test_twenty_clients_train_three_rounds_beside_a_running_event_loop_and_the_seed_decides() -> None:
    threads: set[int] = set()
    told: list[SimulatedRound] = []

    def measure(model: dict[str, np.ndarray]) -> dict[str, float]:
        threads.add(threading.get_ident())
        return norm(model)

    first = simulate(SPEC, MODEL, walker, num_clients=20, measure=measure, on_round=told.append)
    assert [done.round.number for done in first.rounds] == [1, 2, 3]
    assert [done.round.num_updates for done in first.rounds] == [5, 5, 5]
    assert (first.run.state, first.run.latest_version) == ("completed", 3)
    assert first.rounds[-1].measured == norm(first.model)
    assert [done.measured for done in told] == [done.measured for done in first.rounds]
    assert threads == {threading.get_ident()}
    digests = [simulate(SPEC, MODEL, walker, num_clients=20, seed=seed, concurrency=5).digest for seed in (0, 1)]
    assert first.digest == digests[0] != digests[1]


def test_few_trainers_exist_at_once_and_clients_evaluate_what_others_trained() -> None:
    lock, alive, peak = threading.Lock(), 0, 0
    together = threading.Barrier(2)
    updates: list[Progress] = []

    def trainers(index: int) -> Trainer:
        nonlocal alive, peak
        with lock:
            alive += 1
            peak = max(peak, alive)

        def train(task: TrainingTask) -> TrainedModel:
            nonlocal alive
            together.wait(timeout=60)
            with lock:
                alive -= 1
            return walker(index)(task)

        return train

    def evaluators(index: int) -> Callable[[TrainingTask], EvaluationReport]:
        return lambda task: EvaluationReport(num_examples=1, metrics={"round": float(task.round)})

    spec = SPEC.model_copy(
        update={"round": RoundSpec(quorum=8), "evaluation": EvaluationSpec(every=3), "num_rounds": 3}
    )
    done = simulate(spec, MODEL, trainers, num_clients=8, evaluators=evaluators, on_event=updates.append)
    assert peak == 2
    assert sum(isinstance(event, UpdateAccepted) for event in updates) == 24
    assert [one.round.evaluation for one in done.rounds] == [None, None, {"round": 3.0}]


def test_an_error_in_a_trainer_is_raised_as_it_is() -> None:
    def trainers(index: int) -> Trainer:
        def train(task: TrainingTask) -> TrainedModel:
            if task.round == 2:
                raise LookupError("no data on Tuesdays")
            return walker(index)(task)

        return train

    with pytest.raises(LookupError, match="no data on Tuesdays"):
        simulate(SPEC, MODEL, trainers, num_clients=8)


def test_a_run_that_fails_is_raised_with_the_servers_reason() -> None:
    spec = RunSpec(num_rounds=1, round=RoundSpec(quorum=3, deadline_seconds=0.3, max_attempts=1))
    with pytest.raises(RunFailedError, match="failed: round 1"):
        simulate(spec, MODEL, walker, num_clients=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clients": 0}, "num_clients 0 must be 1 to 10000"),
        ({"num_clients": 2, "concurrency": 0}, "concurrency 0 must be at least 1"),
        ({"num_clients": 2, "attributes": [{}]}, "attributes has 1 entries for 2 clients"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    call: Callable[..., Simulation] = simulate
    with pytest.raises(UsageError, match=message):
        call(SPEC, MODEL, walker, **options)


def test_masked_rounds_give_the_weighted_mean_of_clients_who_send_together() -> None:
    masked = PairwiseSecureAggregation(kind="pairwise", min_members=5, examples_per_unit=1, clipping_norm=20.0)
    spec = RunSpec(name="masked", num_rounds=2, round=RoundSpec(quorum=5, cohort_size=5), secure_aggregation=masked)
    told: list[Progress] = []
    done = simulate(spec, MODEL, walker, num_clients=5, concurrency=2, on_event=told.append)
    assert [one.round.num_updates for one in done.rounds] == [5, 5]
    expected = np.zeros(4)
    for number in (1, 2):
        steps = [np.random.default_rng([index, number]).normal(size=4).astype(np.float32) for index in range(5)]
        expected += sum((index + 1) * step.astype(np.float64) for index, step in enumerate(steps)) / 15
    np.testing.assert_allclose(done.model["w"], expected, atol=2 * ring_of(spec).step + 1e-6)
    assert sum(isinstance(event, UpdateCounted) for event in told) == 10


def test_a_round_in_helper_mode_gives_the_weighted_mean_too() -> None:
    helpers = [MaskHelper(name=name, sealing_key=name[0] * 64, signing_key=name[0] * 64) for name in ("a-1", "b-2")]
    masked = HelperSecureAggregation(
        kind="helper", min_members=3, helpers=helpers, examples_per_unit=1, clipping_norm=20.0
    )
    spec = RunSpec(name="masked", num_rounds=2, round=RoundSpec(quorum=4, cohort_size=4), secure_aggregation=masked)
    told: list[Progress] = []
    done = simulate(spec, MODEL, walker, num_clients=4, concurrency=2, on_event=told.append)
    assert [one.round.num_updates for one in done.rounds] == [4, 4]
    expected = np.zeros(4)
    for number in (1, 2):
        steps = [np.random.default_rng([index, number]).normal(size=4).astype(np.float32) for index in range(4)]
        expected += sum((index + 1) * step.astype(np.float64) for index, step in enumerate(steps)) / 10
    np.testing.assert_allclose(done.model["w"], expected, atol=2 * ring_of(spec).step + 1e-6)
    relied_on = [event for event in told if isinstance(event, HelpersTrusted)]
    assert len(relied_on) == 8
    assert relied_on[0].helpers == ("a-1", "b-2")
    assert done.run.spec.secure_aggregation != masked, "the simulation has made keys of its own"
