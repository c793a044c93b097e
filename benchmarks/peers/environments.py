"""The peers' virtual environments, which `make bench-peers` makes, and what runs in them."""

import json
import os
import subprocess
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

PYTHONS: Final = {
    "Flower": Path(os.environ.get("FEDQUORUM_BENCH_FLOWER", ".venv-flower/bin/python")),
    "NVFlare": Path(os.environ.get("FEDQUORUM_BENCH_NVFLARE", ".venv-nvflare/bin/python")),
}
"""The interpreters of the environments that have them."""

_SCRIPTS: Final = Path(__file__).parent
_ROUND: Final = "Sending task train to"
_LIMIT_SECONDS: Final = 300


def aggregation(peer: str, *, num_updates: int, num_elements: int, repetitions: int) -> dict[str, Any]:
    """Lets a peer decode and average updates; gives its `version`, `seconds` and `peak_mebibytes`."""
    printed = _run(peer, f"{peer.lower()}_aggregation.py", num_updates, num_elements, repetitions)
    told: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return told


def nvflare_rounds(*, num_clients: int, num_elements: int, num_rounds: int) -> list[float]:
    """Gives the seconds of each round of NVFlare's simulator but the first and the last, from its log."""
    printed = _run("NVFlare", "nvflare_rounds.py", num_clients, num_elements, num_rounds)
    begun = [datetime.fromisoformat(line[:19]) for line in printed.splitlines() if _ROUND in line]
    parts = [int(line[20:23]) / 1000 for line in printed.splitlines() if _ROUND in line]
    moments = [moment.timestamp() + part for moment, part in zip(begun, parts, strict=True)]
    return [after - before for before, after in pairwise(moments[1:])]


def _run(peer: str, script: str, *numbers: int) -> str:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": ""}
    answer = subprocess.run(
        [str(PYTHONS[peer].absolute()), str(_SCRIPTS / script), *map(str, numbers)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_LIMIT_SECONDS,
    )
    if answer.returncode:
        raise RuntimeError(f"{peer}: {script} failed:\n{answer.stdout[-2000:]}")
    return answer.stdout
