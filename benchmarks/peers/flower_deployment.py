"""Rounds of Flower's deployment: a SuperLink, SuperNodes and the processes that these start, on this machine."""

import contextlib
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks.peers.environments import PYTHONS

_APP: Final = Path(__file__).with_name("flower_app")
_BEGINS: Final = re.compile(r"round begins (\d+\.\d+)")
_START_SECONDS: Final = 60.0
_RUN_SECONDS: Final = 240
_STOP_SECONDS: Final = 10


def rounds(*, num_clients: int, num_elements: Sequence[int], num_rounds: int) -> dict[int, list[float]]:
    """Gives the seconds of each round but the first, by the size of the model."""
    with tempfile.TemporaryDirectory(prefix="fedquorum-bench-") as folder, _deployment(Path(folder), num_clients):
        return {
            size: _seconds(_run(Path(folder), f"elements={size} rounds={num_rounds} clients={num_clients}"))
            for size in num_elements
        }


def _seconds(printed: str) -> list[float]:
    moments = [float(found) for found in _BEGINS.findall(printed)]
    return [after - before for before, after in pairwise(moments[1:])]


@contextlib.contextmanager
def _deployment(folder: Path, num_clients: int) -> Iterator[None]:
    port, *others = _free_ports(num_clients + 1)
    address = f"127.0.0.1:{port}"
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{address}"\ninsecure = true\n'
    )
    with contextlib.ExitStack() as stack:
        link = ["--insecure", "--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)]
        stack.enter_context(_process(folder, "flower-superlink", link))
        _await_port(port)
        for own in others:
            node = ["--insecure", "--superlink", address, "--port", str(own)]
            stack.enter_context(_process(folder, "flower-supernode", node))
        yield


@contextlib.contextmanager
def _process(folder: Path, program: str, arguments: Sequence[str]) -> Iterator[None]:
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(_command(program, *arguments), stdout=log, stderr=log, env=_environment(folder))
    with process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _run(folder: Path, settings: str) -> str:
    command = _command("flwr", "run", str(_APP), "bench", "--stream", "--run-config", settings)
    answer = subprocess.run(
        command,
        env=_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_RUN_SECONDS,
        check=False,
    )
    if not _seconds(answer.stdout):
        raise RuntimeError(f"Flower's run failed:\n{answer.stdout[-2000:]}\n{(folder / 'log').read_text()[-2000:]}")
    return answer.stdout


def _command(program: str, *arguments: str) -> list[str]:
    return [str(PYTHONS["Flower"].absolute().with_name(program)), *arguments]


def _environment(folder: Path) -> dict[str, str]:
    # Flower starts further programs of its environment by name.
    path = f"{PYTHONS['Flower'].absolute().parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"FLWR_HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": "", "PATH": path}


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _await_port(port: int) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up_at:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise RuntimeError(f"Flower's SuperLink did not listen within {_START_SECONDS:.0f} s")
