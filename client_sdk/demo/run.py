"""Runs the demo from beginning to end."""

import functools
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import numpy as np
from rich.console import Console

from client_sdk.client import AggregatorClient
from client_sdk.demo.folder import prepare_folder
from client_sdk.demo.mnist import MnistSubset, load
from client_sdk.demo.report import DemoResult, RoundResult, Screen, Traffic, show_result
from client_sdk.errors import RunFailedError
from client_sdk.local_server import running_server
from client_sdk.operator import Operator
from client_sdk.participant import participate
from client_sdk.session.deltas import Structure
from client_sdk.session.progress import Progress
from client_sdk.session.work import TrainedModel, TrainingTask
from client_sdk.torch import (
    ImageDataset,
    TorchEvaluator,
    TorchTrainer,
    classifier,
    image_dataset,
    load_into,
    sgd,
    tensors_of,
    use_threads,
)
from fl_protocol.rounds import EventType
from fl_protocol.runs import Run, RunSpec, RunState
from fl_protocol.specs.protection import NoSecureAggregation
from fl_protocol.specs.rounds import RoundSpec
from fl_protocol.specs.secure_aggregation import MaskedMetric, PairwiseSecureAggregation
from fl_protocol.specs.training import TrainingSpec
from fl_protocol.tasks import ClientRequest, EnrolledClient, EvaluationReport

SIZES: Final = (784, 128, 64, 10)
TRAINING: Final = TrainingSpec(local_epochs=4, batch_size=64, learning_rate=0.1)

MOMENTUM: Final = 0.9
MIN_MEMBERS: Final = 5
CLIPPING_NORM: Final = 32.0
"""No update of the demo is so long: the first ones of few clients measure up to 18."""
MAX_LOSS: Final = 10.0
"""The largest mean loss that a masked run's clients report as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What a demo may be told."""

    folder: Path = Path("fedquorum-demo")
    num_clients: int = 10
    num_rounds: int = 10
    seed: int = 0
    secure_aggregation: bool = False
    keep_serving: bool = False

    @property
    def spec(self) -> RunSpec:
        """The run: every client in every round."""
        count = self.num_clients
        return RunSpec(
            name="mnist",
            num_rounds=self.num_rounds,
            round=RoundSpec(quorum=count, cohort_size=count),
            training=TRAINING,
            secure_aggregation=_masked(count) if self.secure_aggregation else NoSecureAggregation(),
        )


def _masked(num_clients: int) -> PairwiseSecureAggregation:
    return PairwiseSecureAggregation(
        kind="pairwise",
        min_members=min(num_clients, MIN_MEMBERS),
        clipping_norm=CLIPPING_NORM,
        metrics={"loss": MaskedMetric(max_abs=MAX_LOSS)},
    )


async def run_demo(
    settings: DemoSettings,
    console: Console,
    *,
    operator_token: str,
    on_result: Callable[[DemoResult], None] | None = None,
) -> DemoResult:
    """Trains on MNIST with a real server and real clients; the same seed gives the same model."""
    started = time.monotonic()
    # One thread an operation: the clients fill the cores, and sums have the same order on every machine.
    use_threads(1)
    folder = prepare_folder(settings.folder)
    images = await anyio.to_thread.run_sync(load)
    slots = threading.Semaphore(os.cpu_count() or 1)
    async with running_server(folder, operator_token) as address:
        console.print(f"server at {address}, API docs at {address}/docs", highlight=False)
        async with AggregatorClient(address, token=operator_token) as client:
            demo = _Demo(settings, folder, images, address, Operator(client), Traffic(), slots)
            result = await demo.train(console, started=started)
        show_result(console, result, folder=folder)
        if on_result is not None:
            on_result(result)
        if settings.keep_serving:
            await _keep_serving(console, address=address, operator_token=operator_token)
    return result


async def _keep_serving(console: Console, *, address: str, operator_token: str) -> None:
    console.print(
        f"\nStill serving at {address}/docs until Ctrl-C. The operator token of this server:", highlight=False
    )
    console.print(
        f"  export FEDQUORUM_SERVER={address} FEDQUORUM_TOKEN={operator_token}", highlight=False, soft_wrap=True
    )
    await anyio.sleep_forever()


@dataclass(frozen=True, slots=True)
class _InTurn:
    """A trainer that waits for a free core: more threads than cores only take Python's lock from each other."""

    trainer: TorchTrainer
    slots: threading.Semaphore

    @property
    def structure(self) -> Structure:
        return self.trainer.structure

    def __call__(self, task: TrainingTask) -> TrainedModel:
        with self.slots:
            return self.trainer(task)


@dataclass(frozen=True, slots=True)
class _Demo:
    settings: DemoSettings
    folder: Path
    images: MnistSubset
    address: str
    operator: Operator
    traffic: Traffic
    slots: threading.Semaphore

    async def train(self, console: Console, *, started: float) -> DemoResult:
        enrolled = await self._enrol()
        count, rounds = self.settings.num_clients, self.settings.num_rounds
        initial = tensors_of(classifier(SIZES, seed=self.settings.seed))
        run = await self.operator.start_run(self.settings.spec, initial)
        results: list[RoundResult] = []
        with Screen(console, num_rounds=rounds, quorum=count) as screen:
            screen.say(f"{count} clients with {self._shard_size} images each, {rounds} rounds")
            async with anyio.create_task_group() as clients:
                for client in enrolled:
                    clients.start_soon(functools.partial(self._take_part, run_id=run.run_id, screen=screen), client)
                await self._follow(run, screen=screen, results=results)
        final = await self.operator.download(run.run_id, self.folder / "models")
        kept = Path(shutil.copyfile(final.path, self.folder / "model.safetensors"))
        seconds = time.monotonic() - started
        return DemoResult(self.address, run.run_id, tuple(results), kept, final.digest, seconds)

    @property
    def _shard_size(self) -> int:
        return len(self.images.train_labels) // self.settings.num_clients

    async def _enrol(self) -> list[EnrolledClient]:
        """Enrols the clients as they would enrol themselves: with an enrolment token, not with the operator's."""
        enrolment = await self.operator.create_enrolment(max_uses=self.settings.num_clients)
        async with AggregatorClient(self.address, token=enrolment.token) as door:
            return [
                await door.enrol_client(ClientRequest(name=f"client-{number:02}"))
                for number in range(1, self.settings.num_clients + 1)
            ]

    async def _take_part(self, enrolled: EnrolledClient, *, run_id: str, screen: Screen) -> None:
        def tell(event: Progress) -> None:
            self.traffic.note(event)
            screen.update_accepted(event)

        trainer = TorchTrainer(
            classifier(SIZES, seed=0),
            self._shard(enrolled.name),
            optimizer=sgd(momentum=MOMENTUM),
            seed=self.settings.seed,
            client=enrolled.name,
        )
        folder = self.folder / "clients" / enrolled.name
        async with AggregatorClient(self.address, token=enrolled.token) as client:
            await participate(
                client,
                run_id,
                _InTurn(trainer, self.slots),
                cache_dir=folder,
                state_dir=folder,
                client_id=enrolled.client_id,
                on_event=tell,
            )

    def _shard(self, name: str) -> ImageDataset:
        number = int(name.rpartition("-")[2])
        order = np.random.default_rng(self.settings.seed).permutation(len(self.images.train_labels))
        mine = np.sort(order[(number - 1) * self._shard_size : number * self._shard_size])
        return image_dataset(self.images.train_images[mine], self.images.train_labels[mine])

    async def _follow(self, run: Run, *, screen: Screen, results: list[RoundResult]) -> None:
        module = classifier(SIZES, seed=0)
        evaluator = TorchEvaluator(module, image_dataset(self.images.test_images, self.images.test_labels))
        async for event in self.operator.watch(run.run_id):
            number = event.data.get("round")
            if event.type == EventType.ROUND_OPENED and isinstance(number, int):
                screen.round_opened(number)
            version = event.data.get("version")
            if event.type == EventType.MODEL_PUBLISHED and isinstance(version, int) and version > 0:
                model = await self.operator.result(run.run_id, self.folder / "models", version=version)
                load_into(module, model)
                report = await anyio.to_thread.run_sync(evaluator.measure)
                results.append(await self._round_result(run.run_id, version, report=report))
                screen.round_done(results[-1])
        final = await self.operator.client.get_run(run.run_id)
        if final.state is not RunState.COMPLETED:
            raise RunFailedError(f"the run is {final.state}: {final.reason or 'no reason was given'}")

    async def _round_result(self, run_id: str, number: int, *, report: EvaluationReport) -> RoundResult:
        done = await self.operator.client.get_round(run_id, number)
        ended = done.completed_at or done.opened_at
        return RoundResult(
            number=number,
            num_updates=done.num_updates,
            train_loss=done.metrics.get("loss", float("nan")),
            loss=report.metrics["loss"],
            accuracy=report.metrics["accuracy"],
            seconds=(ended - done.opened_at).total_seconds(),
            num_bytes=self.traffic.num_bytes[number],
        )
