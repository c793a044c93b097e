"""Masked updates, and two of ten clients that vanish in every round (`python examples/vanishing_clients.py`).

Ten clients hold 2,000 digits of MNIST each. Three federations train the same network for ten rounds:

- plain: the server sees each update;
- masked: it sees the sum over those who stayed, and two clients, others in each round, vanish amid the session: they
  have dealt the shares of their keys and send nothing more. The others give what it takes to remove their masks;
- plain, eight of ten: what the masked one would be without masks, to tell what the masks cost from what two missing
  clients do.

A client that vanishes is started anew when the next round opens, as after a crash. Prints a table and saves a plot, in
about three minutes: the server waits some seconds in each masked round for those who will not come.
"""

import functools
import os
import secrets
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import numpy as np
from plotting import Line, print_table, save_lines

from client_sdk import AggregatorClient, Operator, Progress, RunSpec, TrainedModel, TrainingTask, participate
from client_sdk.demo import mnist
from client_sdk.local_server import running_server
from client_sdk.session.progress import SessionAdvanced, TrainingFinished
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
from fl_protocol.sessions import SessionState
from fl_protocol.tasks import EnrolledClient

NUM_CLIENTS, NUM_VANISHING, NUM_ROUNDS, NUM_SETTLED = 10, 2, 10, 3
SIZES = (784, 128, 64, 10)
TRAINING = {"local_epochs": 2, "batch_size": 64, "learning_rate": 0.1}
MASKED = {"kind": "pairwise", "clipping_norm": 32.0, "phase_seconds": 4.0, "min_bytes_per_second": 1e7}
ALLOWED_LOSS = 0.005


class Vanished(BaseException):
    """The client is gone, as if its machine had lost its power."""


@dataclass
class Federation:
    """One run of all clients against a server of its own; `accuracies` are those after each round."""

    name: str
    is_masked: bool
    vanish: bool
    accuracies: list[float] = field(default_factory=list)
    newest_round: int = 0
    is_over: bool = False
    moved: anyio.Event = field(default_factory=anyio.Event)

    @property
    def spec(self) -> RunSpec:
        """Gives the run: a round is done when everybody has answered who is not going to vanish."""
        quorum = NUM_CLIENTS - NUM_VANISHING if self.vanish else NUM_CLIENTS
        told = {"name": "vanishing", "num_rounds": NUM_ROUNDS, "training": TRAINING}
        told |= {"round": {"quorum": quorum, "cohort_size": NUM_CLIENTS}}
        return RunSpec.model_validate(told | ({"secure_aggregation": MASKED} if self.is_masked else {}))

    @property
    def settled(self) -> float:
        """The mean of the last accuracies: one alone moves by some tenths of a point, whatever is compared."""
        return float(np.mean(self.accuracies[-NUM_SETTLED:]))

    def vanishes(self, number: int, event: Progress) -> bool:
        """Tells whether client `number` is gone at this moment: after its shares, or instead of its update."""
        if not self.vanish or not isinstance(event, SessionAdvanced | TrainingFinished):
            return False
        is_the_moment = isinstance(event, SessionAdvanced) and event.phase is SessionState.SHARES
        if is_the_moment is not self.is_masked:
            return False
        return (number - NUM_VANISHING * event.task.round) % NUM_CLIENTS < NUM_VANISHING

    async def run(self, shares: Sequence[ImageDataset], held_out: ImageDataset, folder: Path) -> None:
        """Trains, and measures each model."""
        token = secrets.token_urlsafe()
        async with running_server(folder, token) as url, AggregatorClient(url, token=token) as client:
            operator = Operator(client)
            enrolled = [await operator.enrol(f"client-{number}") for number in range(NUM_CLIENTS)]
            run = await operator.start_run(self.spec, tensors_of(classifier(SIZES, seed=0)))
            async with anyio.create_task_group() as tasks:
                for number, one in enumerate(enrolled):
                    call = functools.partial(self.attend, url, run.run_id, number=number, data=shares[number])
                    tasks.start_soon(call, one, folder / one.name)
                await self.follow(operator, run.run_id, held_out=held_out, folder=folder)

    async def follow(self, operator: Operator, run_id: str, *, held_out: ImageDataset, folder: Path) -> None:
        """Measures each model that is published."""
        module = classifier(SIZES, seed=0)
        async for event in operator.watch(run_id):
            if event.type == EventType.ROUND_OPENED:
                self.newest_round = int(str(event.data["round"]))
                self.moved.set()
                self.moved = anyio.Event()
            elif event.type == EventType.MODEL_PUBLISHED and event.data["version"]:
                load_into(module, await operator.result(run_id, folder, version=int(str(event.data["version"]))))
                report = await anyio.to_thread.run_sync(TorchEvaluator(module, held_out).measure)
                self.accuracies.append(report.metrics["accuracy"])
        self.is_over = True
        self.moved.set()

    async def attend(
        self, url: str, run_id: str, enrolled: EnrolledClient, folder: Path, *, number: int, data: ImageDataset
    ) -> None:
        """Takes part to the end of the run; whoever vanishes comes back for the next round."""
        # By its name and the round a client shuffles its images, so that the three federations differ in nothing else.
        trainer = TorchTrainer(classifier(SIZES, seed=0), data, optimizer=sgd(momentum=0.9), client=enrolled.name)
        lost = 0

        def tell(event: Progress) -> None:
            nonlocal lost
            if self.vanishes(number, event):
                lost = self.newest_round
                raise Vanished

        while not self.is_over:
            try:
                async with AggregatorClient(url, token=enrolled.token) as client:
                    await participate(
                        client,
                        run_id,
                        functools.partial(_in_turn, trainer),
                        state_dir=folder,
                        client_id=enrolled.client_id,
                        on_event=tell,
                    )
            except Vanished:
                while self.newest_round <= lost and not self.is_over:
                    await self.moved.wait()
            else:
                return


_CORES = threading.Semaphore(os.cpu_count() or 1)


def _in_turn(trainer: TorchTrainer, task: TrainingTask) -> TrainedModel:
    # More threads than cores would only take Python's lock from each other.
    with _CORES:
        return trainer(task)


def main() -> None:
    """Prints the table and saves the plot."""
    use_threads(1)
    images = mnist.load()
    order = np.random.default_rng(0).permutation(len(images.train_labels))
    shares = [
        image_dataset(images.train_images[mine], images.train_labels[mine])
        for mine in np.array_split(order, NUM_CLIENTS)
    ]
    held_out = image_dataset(images.test_images, images.test_labels)
    federations = (
        Federation("plain, all ten", is_masked=False, vanish=False),
        Federation("masked, two vanish", is_masked=True, vanish=True),
        Federation("plain, the same eight", is_masked=False, vanish=True),
    )
    for federation in federations:
        with tempfile.TemporaryDirectory(prefix="fedquorum-example-") as folder:
            anyio.run(federation.run, shares, held_out, Path(folder))
    plain = federations[0].settled
    rows = [
        (one.name, f"{one.accuracies[-1]:.2%}", f"{one.settled:.2%}", f"{100 * (one.settled - plain):+.2f}")
        for one in federations
    ]
    print_table(("federation", "last round", f"mean of the last {NUM_SETTLED}", "points apart"), rows)
    lines = [Line(one.name, list(enumerate(one.accuracies, start=1))) for one in federations]
    title = "Two of ten clients vanish amid each session"
    save_lines("vanishing_clients.svg", lines, title=title, x="round", y="accuracy on test images")
    if abs(federations[1].settled - plain) > ALLOWED_LOSS:
        raise SystemExit(f"masked clients are more than {ALLOWED_LOSS:.1%} from the run that is not masked")


if __name__ == "__main__":
    main()
