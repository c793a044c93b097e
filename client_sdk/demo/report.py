"""What the demo shows: progress while it runs, then a table of the rounds and where to go from there."""

import dataclasses
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from client_sdk.session import progress as happened
from client_sdk.session.progress import Progress as Happening


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One line of the table; loss and accuracy are those of the round's model on the held-out images."""

    number: int
    num_updates: int
    train_loss: float
    loss: float
    accuracy: float
    seconds: float
    num_bytes: int


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came of the demo."""

    address: str
    run_id: str
    rounds: tuple[RoundResult, ...]
    model: Path
    digest: str
    seconds: float

    @property
    def accuracy(self) -> float:
        return self.rounds[-1].accuracy

    def as_json(self) -> dict[str, object]:
        """Gives what a script reads."""
        return {
            "run_id": self.run_id,
            "accuracy": self.accuracy,
            "digest": self.digest,
            "model": str(self.model),
            "seconds": self.seconds,
            "rounds": [dataclasses.asdict(result) for result in self.rounds],
        }


@dataclass(slots=True)
class Traffic:
    """Bytes of models and updates that went over HTTP, by round."""

    num_bytes: Counter[int] = field(default_factory=Counter)

    def note(self, event: Happening) -> None:
        """Counts what one participant tells."""
        match event:
            case happened.ModelPulled(task=task, from_cache=False):
                self.num_bytes[task.round] += task.model_num_bytes
            case happened.UpdateAccepted(task=task, receipt=receipt):
                self.num_bytes[task.round] += receipt.num_bytes
            case happened.UpdateCounted(task=task, num_bytes=num_bytes):
                self.num_bytes[task.round] += num_bytes


class Screen:
    """Live bars on a terminal, one plain line a round elsewhere."""

    def __init__(self, console: Console, *, num_rounds: int, quorum: int) -> None:
        self._console = console
        self._num_rounds = num_rounds
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._rounds = self._bars.add_task("rounds", total=num_rounds)
        self._updates = self._bars.add_task("updates of round 1", total=quorum)

    def __enter__(self) -> "Screen":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._bars.console.print(text, highlight=False)

    def round_opened(self, number: int) -> None:
        self._bars.update(self._updates, completed=0, description=f"updates of round {number}")

    def update_accepted(self, event: Happening) -> None:
        if isinstance(event, happened.UpdateAccepted | happened.UpdateCounted):
            self._bars.advance(self._updates)

    def round_done(self, result: RoundResult) -> None:
        self._bars.update(self._rounds, completed=result.number)
        self.say(
            f"round {result.number:>2}/{self._num_rounds}  {result.num_updates} updates  "
            f"accuracy {result.accuracy:6.2%}  loss {result.loss:.4f}  {result.seconds:.2f} s"
        )


def rounds_table(rounds: tuple[RoundResult, ...]) -> Table:
    """Makes the table of the rounds."""
    table = Table(
        box=box.SIMPLE_HEAD, title="Rounds (loss and accuracy on 2,000 held-out images)", title_justify="left"
    )
    for name in ("round", "updates", "training loss", "loss", "accuracy", "seconds", "bytes"):
        table.add_column(name, justify="right")
    for result in rounds:
        table.add_row(
            str(result.number),
            str(result.num_updates),
            f"{result.train_loss:.4f}",
            f"{result.loss:.4f}",
            f"{result.accuracy:.2%}",
            f"{result.seconds:.2f}",
            f"{result.num_bytes:,}",
        )
    return table


def _try_next() -> str:
    """Tells how to reach the command where its virtual environment is not active."""
    if shutil.which("fedquorum"):
        return "Try next:"
    return f"Try next, after '. {Path(sys.executable).parent / 'activate'}':"


def show_result(console: Console, result: DemoResult, *, folder: Path) -> None:
    """Prints the table, where the model lies and what to try next."""
    console.print(rounds_table(result.rounds))
    serve = f"FEDQUORUM_OPERATOR_TOKEN=my-own-token fedquorum serve --database-url sqlite:///{folder / 'fedquorum.db'}"
    lines = [
        f"The model reached {result.accuracy:.2%} after {len(result.rounds)} rounds in {result.seconds:.1f} s.",
        "",
        f"  model    {result.model}",
        f"  digest   {result.digest}",
        f"  run      {result.run_id}",
        "",
        "Look at the API: start a server and open its docs page, http://127.0.0.1:8080/docs",
        f"  {serve}",
        "",
        _try_next(),
        "  fedquorum demo --clients 20 --seed 1     another federation",
        "  fedquorum demo --secure-aggregation      the server learns only the sum of the updates",
        "  fedquorum demo --keep-serving            leaves the server running, with its docs page",
        "  fedquorum run --help                     runs of your own",
        "  fedquorum participate --help             take part with your own trainer",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
