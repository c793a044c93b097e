"""Participants in plain HTTP and nothing else: `python -m benchmarks.plain_participants URL RUN_ID FILE TOKEN...`.

A thread a token. Each claims a task, reads the model's bytes into a buffer that it uses again, puts the bytes of FILE,
prepared before, as its update, and asks for the next task until the run is over. Nothing is decoded, trained or
written, so that what a round takes is mostly what the server makes it take.
"""

import http.client
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fl_protocol import routes
from fl_protocol.models import TENSOR_MEDIA_TYPE

WAIT_SECONDS: Final = 30


class _Participant:
    """One client and its connection, which is kept."""

    def __init__(self, address: str, *, token: str) -> None:
        self._connection = http.client.HTTPConnection(address)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._buffer = bytearray()

    def take_part(self, run_id: str, update: bytes) -> None:
        """Sends the same update in each round until the run is over."""
        claim = f"{routes.path(routes.RUN_TASKS, run_id=run_id)}?wait={WAIT_SECONDS}"
        while True:
            with self._answer("POST", claim) as answer:
                content = answer.read()
            if answer.status == HTTPStatus.GONE:
                return
            if answer.status == HTTPStatus.NO_CONTENT:
                continue
            task = json.loads(content)
            self._pull(task["model_url"], num_bytes=task["model_num_bytes"])
            path = routes.path(routes.TASK_UPDATE, task_id=task["task_id"])
            with self._answer("PUT", path, update, {"Content-Type": TENSOR_MEDIA_TYPE}) as answer:
                answer.read()

    def _pull(self, path: str, *, num_bytes: int) -> None:
        if len(self._buffer) < num_bytes:
            self._buffer = bytearray(num_bytes)
        left = memoryview(self._buffer)[:num_bytes]
        with self._answer("GET", path) as answer:
            while count := answer.readinto(left):
                left = left[count:]
        if left.nbytes:
            raise RuntimeError(f"{left.nbytes} bytes of the model are missing")

    def _answer(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        self._connection.request(method, path, body=body, headers={**self._headers, **(headers or {})})
        answer = self._connection.getresponse()
        if answer.status >= HTTPStatus.BAD_REQUEST and answer.status != HTTPStatus.GONE:
            raise RuntimeError(f"{method} {path} is answered {answer.status}: {answer.read().decode()}")
        return answer


def main(url: str, run_id: str, file: str, *tokens: str) -> None:
    """Takes part with each token until the run is over."""
    update = Path(file).read_bytes()
    participants = [_Participant(urlsplit(url).netloc, token=token) for token in tokens]
    with ThreadPoolExecutor(len(participants)) as pool:
        list(pool.map(lambda one: one.take_part(run_id, update), participants))


if __name__ == "__main__":
    main(*sys.argv[1:])
