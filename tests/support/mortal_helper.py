"""A helper in a process of its own that SIGKILLs itself at a named point of its first answer.

python -m tests.support.mortal_helper SERVER TOKEN HELPER_DIR ROSTER POINT
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import anyio

from client_sdk.client import AggregatorClient
from client_sdk.mask_helper import HelperKeyStore, MaskHelper, serve
from client_sdk.mask_helper.release_log import ReleaseLog
from client_sdk.masking.trust import load_roster
from fl_protocol.helper_mode import Verdict

POINTS: Final = ("after_verdict", "before_log", "amid_log", "after_log", "after_answer")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Replaces what is called at a point by the same with a death before, in or after it."""
    put_verdict, put_sum = AggregatorClient.put_verdict, AggregatorClient.put_mask_sum
    append = ReleaseLog._append

    async def verdict(client: AggregatorClient, request_id: str, said: Verdict) -> None:
        await put_verdict(client, request_id, said)
        if point == "after_verdict":
            die()

    def dying_append(log: ReleaseLog, line: bytes) -> None:
        if point == "before_log":
            die()
        if point == "amid_log":
            log._held.write(line[: len(line) // 2])
            die()
        append(log, line)
        if point == "after_log":
            die()

    async def answer(*arguments: Any) -> Any:
        told = await put_sum(*arguments)
        if point == "after_answer":
            die()
        return told

    AggregatorClient.put_verdict = verdict  # type: ignore[method-assign]
    AggregatorClient.put_mask_sum = answer  # type: ignore[method-assign]
    ReleaseLog._append = dying_append  # type: ignore[method-assign]


async def answer_all(server: str, token: str, folder: Path, roster: Path) -> None:
    helper = MaskHelper(HelperKeyStore(folder).load(), folder, roster=load_roster(roster), min_members=3)
    async with AggregatorClient(server, token=token) as client:
        await serve(client, helper, tell=print)


if __name__ == "__main__":
    server, token, folder, roster, point = sys.argv[1:]
    arm(point)
    anyio.run(answer_all, server, token, Path(folder), Path(roster))
