"""A process that sends one update with the SDK and tells what it took: `python -m tests.support.sender` < Order."""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client_sdk.client import AggregatorClient, Seams
from client_sdk.transfer import body_of_tensors


@dataclass(frozen=True)
class Order:
    """What to send, where to and as whom."""

    url: str
    token: str
    task_id: str
    num_elements: int


@dataclass(frozen=True)
class Sent:
    """The receipt's digest, how large the body was, and how much the process grew beyond its tensors, in bytes."""

    digest: str
    num_bytes: int
    growth_bytes: int


def step(num_elements: int) -> NDArray[np.float32]:
    """Gives the delta that is sent for the tensor `w`."""
    return np.random.default_rng(3).standard_normal(num_elements, dtype=np.float32) * np.float32(2e-5)


async def _no_sleep(seconds: float) -> None:
    """Waits for nothing."""


def _peak_num_bytes(*, anew: bool = False) -> int:
    """Gives the highest resident memory so far, or `anew` from here on."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def _send(order: Order) -> Sent:
    delta = step(order.num_elements)
    before = _peak_num_bytes(anew=True)
    async with AggregatorClient(order.url, token=order.token, seams=Seams(sleep=_no_sleep)) as client:
        body = body_of_tensors({"w": delta}, {"num_examples": "1"})
        receipt = await client.put_update(order.task_id, body)
    return Sent(receipt.digest, receipt.num_bytes, _peak_num_bytes() - before)


def main() -> None:
    """Does what the order on the standard input says."""
    print(json.dumps(asdict(asyncio.run(_send(Order(**json.load(sys.stdin)))))))


if __name__ == "__main__":
    main()
