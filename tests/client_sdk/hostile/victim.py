"""The process that talks to the hostile server: it tries one case after the other and says what came of each.

Read from standard input: `{"cases": [{"name", "act", "url", "slow"}], "folder"}`. Written to standard output: one JSON
object. Imports and the first case, which is an honest round, come before anything is measured; at the end the process
does what it must not, to show that this is noticed.
"""

import asyncio
import contextlib
import hashlib
import json
import pickle  # noqa: TID251 - the watch must see it
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import TensorDataset

from client_sdk import AggregatorClient, Limits, Operator, RunSpec, participate
from client_sdk.torch import TorchTrainer, load_into
from client_sdk.transfer import body_of_bytes
from tests.client_sdk.hostile.answers import MODEL, RUN_ID, TASK_ID
from tests.client_sdk.hostile.watch import Watch

TOKEN: Final = "fqc_a-secret-that-no-other-host-may-see"
GIVE_UP_SECONDS: Final = 20.0
TLS: Final = ssl.create_default_context()
"""Made once, because reading the machine's certificates takes longer than most cases."""

LIMITS: Final = Limits(
    connect_seconds=2.0,
    idle_seconds=1.0,
    answer_seconds=1.5,
    wait_seconds=0.0,
    max_attempts=2,
    backoff_initial_seconds=0.01,
    backoff_max_seconds=0.02,
    retry_after_max_seconds=0.2,
    max_model_bytes=4 << 20,
    max_items=2000,
    max_list_bytes=4 << 20,
)


@dataclass
class Outcome:
    """What came of a case; `error` is the exception's type and those it derives from, [] if there was none."""

    name: str
    error: list[str]
    message: str
    seconds: float
    module_changed: bool
    strangers: list[str]
    growth_bytes: int


@dataclass
class Victim:
    """A client in one case: a module of its own, a cache of its own."""

    client: AggregatorClient
    module: nn.Module
    folder: Path

    async def participate(self) -> None:
        torch.manual_seed(1)
        data = TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
        await participate(self.client, RUN_ID, TorchTrainer(self.module, data), cache_dir=self.folder)

    async def claim(self) -> None:
        await self.client.claim_task(RUN_ID)

    async def result(self) -> None:
        load_into(self.module, await Operator(self.client).result(RUN_ID, self.folder))

    async def wait_for_model(self) -> None:
        await self.client.wait_for_model(RUN_ID, self.folder, after=0)

    async def list_runs(self) -> None:
        await self.client.list_runs()

    async def get_run(self) -> None:
        await self.client.get_run(RUN_ID)

    async def create_run(self) -> None:
        await Operator(self.client).create_run(RunSpec(name="mine"), MODEL)

    async def events(self) -> None:
        async for _ in self.client.events(RUN_ID):
            pass

    async def put_update(self) -> None:
        await self.client.put_update(TASK_ID, body_of_bytes(MODEL))


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def _state(module: nn.Module) -> bytes:
    return b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in module.state_dict().items())


async def _try(case: dict[str, Any], folder: Path) -> Outcome:
    module, cache = _module(), folder / case["name"]
    before, began, memory = _state(module), time.monotonic(), _peak_bytes()
    error: BaseException | None = None
    async with AggregatorClient(case["url"], token=TOKEN, limits=LIMITS, ssl_context=TLS) as client:
        act: Callable[[], Awaitable[None]] = getattr(Victim(client, module, cache), case["act"])
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                await act()
        except Exception as raised:  # noqa: BLE001 - which one it is, is the question
            error = raised
    return Outcome(
        name=case["name"],
        error=[kind.__name__ for kind in type(error).__mro__] if error else [],
        message=str(error) if error else "",
        seconds=time.monotonic() - began,
        module_changed=_state(module) != before,
        strangers=_strangers(cache),
        growth_bytes=_peak_bytes() - memory,
    )


def _strangers(cache: Path) -> list[str]:
    """Names the files of a cache whose bytes are not what their name says."""
    files = list(cache.iterdir()) if cache.exists() else []
    return [
        file.name
        for file in files
        if file.name != f"{hashlib.sha256(file.read_bytes()).hexdigest()}.safetensors"
    ]  # fmt: skip


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def _try_all(cases: list[dict[str, Any]], folder: Path) -> list[Outcome]:
    """Tries the quick cases one by one; those that wait for something to time out wait together."""
    quick = [await _try(case, folder) for case in cases if not case["slow"]]
    slow = await asyncio.gather(*(_try(case, folder) for case in cases if case["slow"]))
    return [*quick, *slow]


def _misbehave(folder: Path) -> None:
    """Does each thing that the watch must notice."""
    pickle.loads(pickle.dumps(Path(folder)))
    subprocess.run(["true"], check=True)
    eval("1 + 1")
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("written", encoding="ascii")
    (outside / "file").rename(folder / "moved-in")
    with contextlib.suppress(OSError):
        (outside / "absent").unlink()


def main() -> None:
    order = json.load(sys.stdin)
    folder = Path(order["folder"]).resolve()
    watch = Watch(folder)
    watch.install()
    warm_up, *cases = order["cases"]
    torch.set_num_threads(1)
    first = asyncio.run(_try(warm_up, folder))
    _forget_peak()
    base = _peak_bytes()
    with watch.watching():
        outcomes = asyncio.run(_try_all(cases, folder))
    growth, noticed, watch.seen = _peak_bytes() - base, watch.seen, []
    with watch.watching():
        _misbehave(folder)
    report = {
        "first": asdict(first),
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "growth_bytes": growth,
        "noticed": noticed,
        "noticed_misdeeds": watch.seen,
        "peers": sorted(watch.peers),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
