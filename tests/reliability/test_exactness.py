"""The published model is the exactly computed weighted mean added to the base, and the same bits however it came about."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.participant import Participant, Tensors, create_run, enrol, unpack, update_body, wait_for_run
from tests.support.postgres import fresh_database
from tests.support.server import ServerProcess
from tests.support.zygote import Zygote

LONG = 3600
MAX_WEIGHT = 1_000_000


@dataclass(frozen=True)
class Contribution:
    """What one client sends: its delta and its number of examples."""

    delta: Tensors
    weight: int

    @property
    def body(self) -> bytes:
        """The update's body."""
        return update_body(self.delta, num_examples=self.weight)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def crowd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forking: Zygote
) -> Iterator["Crowd"]:
    """A server on each database with clients to share."""
    folder = tmp_path_factory.mktemp("exactness")
    if request.param == "sqlite":
        with serving(f"sqlite:///{folder}/fedquorum.db", folder, forking) as crowd:
            yield crowd
        return
    with fresh_database(request.getfixturevalue("postgres_server_url"), "exactness") as url:
        with serving(url, folder, forking) as crowd:
            yield crowd


class serving:  # noqa: N801 - read as a statement
    """A server with an operator and clients that are enrolled when they are needed."""

    def __init__(self, database_url: str, folder: Path, forking: Zygote) -> None:
        self._process = ServerProcess(database_url, folder, zygote=forking).start()

    def __enter__(self) -> "Crowd":
        self._operator = self._process.http()
        return Crowd(self._process, self._operator, [])

    def __exit__(self, *_: object) -> None:
        self._operator.close()
        self._process.kill()


@dataclass
class Crowd:
    """A server with an operator and clients."""

    server: ServerProcess
    operator: httpx.Client
    tokens: list[str]
