"""A real server process, as `python -m aggregator_service serve` starts it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Self

import httpx

from tests.support.zygote import ForkedProcess, Zygote

OPERATOR_TOKEN = "operator-token-of-the-tests"
START_SECONDS = 60.0


@dataclass
class ServerProcess:
    """Starts, kills and restarts one server; `url` changes with each start unless `port` is fixed.

    With a `zygote` it is forked, which takes a tenth of the time; without, it is what an operator starts.
    """

    database_url: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    operator_token: str | None = OPERATOR_TOKEN
    url: str = ""
    output: list[str] = field(default_factory=list)
    zygote: Zygote | None = None
    _process: subprocess.Popen[str] | ForkedProcess | None = None
    _lines: "Queue[str | None]" = field(default_factory=Queue)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that was written to standard error since the first start."""
        return (self.folder / "server.log").read_text()

    def start(self, **environment: str) -> Self:
        """Starts the server and waits until it listens; raises RuntimeError with its log if it ends first."""
        self.begin(**environment)
        self.await_listening()
        return self

    def begin(self, **environment: str) -> None:
        """Starts the server and does not wait."""
        settings = {"FEDQUORUM_DATABASE_URL": self.database_url, "FEDQUORUM_PORT": str(self.port)}
        if self.operator_token is not None:
            settings["FEDQUORUM_OPERATOR_TOKEN"] = self.operator_token
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQUORUM_")}
        with (self.folder / "server.log").open("a") as log:
            self._process = self._launch(inherited | settings | self.environment | environment, log)
        self._lines = Queue()
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()

    def _launch(self, environment: dict[str, str], log: IO[str]) -> "subprocess.Popen[str] | ForkedProcess":
        if self.zygote is not None:
            return self.zygote.fork(environment=environment, folder=self.folder, log=log)
        return subprocess.Popen(
            [sys.executable, "-m", "aggregator_service", "serve"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=self.folder,
            env=environment,
        )

    def _read(self, process: "subprocess.Popen[str] | ForkedProcess", lines: "Queue[str | None]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.output.append(line)
                lines.put(line)
        lines.put(None)

    def await_listening(self) -> None:
        """Waits until the server that was begun listens; raises RuntimeError with its log if it ends first."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                line = self._lines.get(timeout=1)
            except Empty:
                continue
            if line is None:
                raise RuntimeError(f"the server ended before it listened:\n{self.log[-4000:]}")
            if line.startswith("listening on "):
                self.url = line.removeprefix("listening on ").strip()
                return
        self.kill()
        raise RuntimeError(f"the server did not listen within {START_SECONDS} s:\n{self.log[-4000:]}")

    def kill(self) -> None:
        """SIGKILLs the server and waits for its end; nothing happens if it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)

    def wait(self, timeout_seconds: float = 30) -> int:
        """Waits for the server's end and gives its exit status."""
        assert self._process is not None
        return self._process.wait(timeout=timeout_seconds)

    def is_running(self) -> bool:
        """Tells whether the process still runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """Ends the server by SIGTERM, as an orchestrator does, and gives its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def resident_megabytes(self) -> float:
        """Gives the peak resident memory of the process so far, in MiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmHWM in /proc")

    def http(self, token: str | None = OPERATOR_TOKEN, **options: float) -> httpx.Client:
        """Opens an HTTP client that sends a token."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        timeout = options.get("timeout", 60)
        # Plain HTTP: reading the certificates would cost more than most requests.
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False, verify=False)


def free_port() -> int:
    """Finds a port that a server can be started on again and again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
