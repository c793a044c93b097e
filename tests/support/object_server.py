"""A real S3-compatible server (SeaweedFS) on loopback, with credentials of its own."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

BUCKET = "tensors"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class ObjectServer:
    """Where the server listens; `environment` is what an operator would set to use it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables that name the server and its credentials."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "access-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }


@contextmanager
def object_server(folder: Path) -> Iterator[ObjectServer]:
    """Yields a server that keeps its objects in a folder; it is ended with the block."""
    server = ObjectServer(f"http://127.0.0.1:{(ports := _free_ports(4))[0]}")
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(_command(folder, ports), stdout=log, stderr=log, cwd=folder)
        try:
            _await_answer(server, process, folder)
            yield server
        finally:
            process.kill()
            process.wait()


def _command(folder: Path, ports: list[int]) -> list[str]:
    environment = ObjectServer("").environment
    keys = {"accessKey": environment["AWS_ACCESS_KEY_ID"], "secretKey": environment["AWS_SECRET_ACCESS_KEY"]}
    actions = ["Read", "Write", "List", "Admin"]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "tests", "credentials": [keys], "actions": actions}]}))
    names = ("-s3.port", "-master.port", "-volume.port", "-filer.port")
    return [
        str(Path(sys.executable).with_name("weed")),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.volumeSizeLimitMB=64",
        "-master.volumePreallocate=false",
        "-volume.max=20",
        "-s3",
        f"-s3.config={config}",
        *(f"{name}={port}" for name, port in zip(names, ports, strict=True)),
    ]


def _await_answer(server: ObjectServer, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "server.log").read_text()[-4000:]
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.endpoint}/healthz").status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError((folder / "server.log").read_text()[-4000:])


def _free_ports(number: int) -> list[int]:
    """Gives free ports whose counterparts for gRPC, 10000 above them, are free, too."""
    found: list[int] = []
    while len(found) < number:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            with suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + 10000))
                if port not in found:
                    found.append(port)
    return found
