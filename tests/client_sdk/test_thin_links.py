"""Over a thin line a participant asks for what has changed; whatever comes instead, it ends with the expected model."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from client_sdk import TrainedModel, TrainingTask, participate_blocking
from client_sdk.client import AggregatorClient, Seams
from client_sdk.config import Limits
from client_sdk.errors import UntrustedAnswerError
from client_sdk.session import link
from client_sdk.transfer import Content, StoredModel
from fl_protocol import model_deltas
from fl_protocol.arrays import encode
from fl_protocol.model_deltas import HEAD_NUM_BYTES, DeltaHead
from fl_protocol.models import DELTA_MEDIA_TYPE
from tests.client_sdk.wire import Answerer, Seen, answer, names_in, wire
from tests.support.databases import SHARED_ON_SQLITE
from tests.support.participant import create_run, enrol
from tests.support.server import ServerProcess
from tests.support.stored import Stored

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RUN = "run_" + "0" * 32
WEIGHTS = np.random.default_rng(1).normal(scale=0.02, size=100_000).astype(np.float32)
OLD, NEW = (b"".join(encode({"w": values}, {})) for values in (WEIGHTS, WEIGHTS * np.float32(1.0001)))
OLD_DIGEST, DIGEST = (f"sha256:{hashlib.sha256(each).hexdigest()}" for each in (OLD, NEW))
EXPECTED = Content(DIGEST, len(NEW))
HEAD = DeltaHead(OLD_DIGEST, DIGEST, len(NEW))
DELTA = b"".join(
    model_deltas.encode(HEAD, base=lambda begin, end: OLD[begin:end], target=lambda begin, end: NEW[begin:end])
)
CODED = zstd.compress(NEW)


@pytest.fixture
def base(tmp_path: Path) -> StoredModel:
    path = tmp_path / "base"
    path.write_bytes(OLD)
    return StoredModel(path, OLD_DIGEST, len(OLD), 2)


def _part(seen: Seen, body: bytes, *, cut_at: int | None = None, **headers: str) -> bytes:
    """Answers with a body from where it is wanted, cut short."""
    start = int(seen.headers["range"].removeprefix("bytes=").removesuffix("-")) if "range" in seen.headers else 0
    span = {"content_range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
    full = answer(206 if start else 200, body[start:], **headers, **span)
    return full if cut_at is None else full[: full.index(b"\r\n\r\n") + 4 + cut_at]


def _as_delta(seen: Seen, body: bytes = DELTA, *, cut_at: int | None = None, tag: str = f"{DIGEST}:delta:ab") -> bytes:
    return _part(seen, body, cut_at=cut_at, etag=f'"{tag}"', content_type=DELTA_MEDIA_TYPE)


def _as_zstd(seen: Seen, body: bytes = CODED, *, cut_at: int | None = None) -> bytes:
    return _part(seen, body, cut_at=cut_at, etag=f'"{DIGEST}:zstd:cd"', content_encoding="zstd")


def _plain(seen: Seen) -> bytes:
    return _part(seen, NEW, etag=f'"{DIGEST}"')


async def _no_sleep(seconds: float) -> None:
    """Waits for nothing."""


async def _download(answers: Answerer, base: StoredModel, folder: Path) -> tuple[StoredModel, list[Seen]]:
    async with wire(answers) as server:
        limits, seams = Limits(max_attempts=4), Seams(sleep=_no_sleep)
        async with AggregatorClient(server.url, token="t" * 20, limits=limits, seams=seams) as client:
            stored = await client.download_model(RUN, folder, version=3, expected=EXPECTED, base=base)
        assert stored.path.read_bytes() == NEW
        assert names_in(folder) == [stored.path.name]
        return stored, server.seen


async def test_a_delta_becomes_the_model(base: StoredModel, tmp_path: Path) -> None:
    stored, seen = await _download(_as_delta, base, tmp_path / "new")
    assert (stored.digest, stored.num_bytes, stored.num_received) == (DIGEST, len(NEW), len(DELTA))
    assert seen[0].target == f"/v1/runs/{RUN}/models/3?base=2"


@pytest.mark.parametrize("form", [_as_delta, _as_zstd], ids=["delta", "zstd"])
async def test_a_form_that_was_cut_goes_on_by_its_own_tag(
    form: Callable[..., bytes], base: StoredModel, tmp_path: Path
) -> None:
    stored, seen = await _download(lambda one: form(one, cut_at=70_000), base, tmp_path / "new")
    tag = f'"{DIGEST}:delta:ab"' if form is _as_delta else f'"{DIGEST}:zstd:cd"'
    whole = DELTA if form is _as_delta else CODED
    assert [one.headers.get("range") for one in seen] == [
        None,
        *(f"bytes={begin}-" for begin in range(70_000, len(whole), 70_000)),
    ]
    assert {one.headers.get("if-range") for one in seen[1:]} == {tag}
    assert stored.num_received == len(whole)


async def test_after_a_cut_the_server_may_change_the_form(base: StoredModel, tmp_path: Path) -> None:
    answers = iter([lambda one: _as_delta(one, cut_at=70_000), _whatever_range(_as_zstd), _plain])
    stored, seen = await _download(_in_turn(answers), base, tmp_path / "new")
    assert (len(seen), stored.num_received) == (2, len(CODED))


def _in_turn(answers: Iterator[Answerer]) -> Answerer:
    def respond(seen: Seen) -> bytes:
        return next(answers)(seen)

    return respond


def _whatever_range(form: Callable[[Seen], bytes]) -> Answerer:
    return lambda seen: form(replace(seen, headers={}))


BROKEN: dict[str, bytes] = {
    "of another base": DeltaHead(DIGEST, DIGEST, len(NEW)).render() + DELTA[HEAD_NUM_BYTES:],
    "to another target": DeltaHead(OLD_DIGEST, OLD_DIGEST, len(NEW)).render() + DELTA[HEAD_NUM_BYTES:],
    "of another size": DeltaHead(OLD_DIGEST, DIGEST, 1 << 60).render() + DELTA[HEAD_NUM_BYTES:],
    "a broken frame": DELTA[:-4] + b"\0\0\0\0",
    "a bomb": HEAD.render() + zstd.compress(NEW + bytes(1 << 24)),
    "no delta at all": b"x",
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_delta_that_does_not_make_the_model_costs_one_request(
    how: str, base: StoredModel, tmp_path: Path
) -> None:
    def answers(seen: Seen) -> bytes:
        return _as_delta(seen, BROKEN[how]) if "base=" in seen.target else _plain(seen)

    stored, seen = await _download(answers, base, tmp_path / "new")
    assert (len(seen), stored.num_received) == (2, len(NEW))


@pytest.mark.parametrize("change", ["other bytes", "shorter", "gone"])
async def test_a_base_that_was_changed_on_the_disk_does_no_harm(change: str, base: StoredModel, tmp_path: Path) -> None:
    if change == "gone":
        base.path.unlink()
    else:
        base.path.write_bytes(OLD[:-9] if change == "shorter" else OLD[:-9] + b"123456789")
    stored, seen = await _download(
        lambda one: _as_delta(one) if "base=" in one.target else _plain(one), base, tmp_path / "new"
    )
    assert (len(seen), stored.num_bytes) == (2, len(NEW))


LIES: dict[str, Answerer] = {
    "a delta of another version": lambda seen: _as_delta(seen, tag=f"{OLD_DIGEST}:delta:ab"),
    "a delta without a tag": lambda seen: _as_delta(seen, tag=""),
    "zstd that is none": lambda seen: _as_zstd(seen, b"no frame at all"),
    "a zstd bomb": lambda seen: _as_zstd(seen, zstd.compress(bytes(1 << 26))),
    "zstd of other bytes": lambda seen: _as_zstd(seen, zstd.compress(OLD)),
    "a coded delta": lambda seen: _part(
        seen, DELTA, etag=f'"{DIGEST}:delta:ab"', content_type=DELTA_MEDIA_TYPE, content_encoding="zstd"
    ),
    "more than the model": lambda seen: _as_zstd(seen, CODED + bytes(len(NEW))),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_about_a_form_gets_nothing_into_the_cache(lie: str, base: StoredModel, tmp_path: Path) -> None:
    with pytest.raises(UntrustedAnswerError):
        await _download(LIES[lie], base, tmp_path / "new")
    assert names_in(tmp_path / "new") == []


@pytest.mark.parametrize("form", [_as_delta, _as_zstd], ids=["delta", "zstd"])
async def test_without_a_base_no_form_but_the_plain_one_is_taken(form: Callable[..., bytes], tmp_path: Path) -> None:
    async with wire(form) as server, AggregatorClient(server.url, token="t" * 20) as client:
        with pytest.raises(UntrustedAnswerError, match="as it is"):
            await client.download_model(RUN, tmp_path / "new", version=3, expected=EXPECTED)


def test_a_line_is_thin_or_not_by_the_last_download_that_says_something() -> None:
    line = link.Link()
    assert not line.is_thin
    for num_bytes, seconds, is_thin in (
        (1 << 20, 1.0, True),
        (1 << 10, 0.0001, True),
        (100 << 20, 1.0, False),
        (1 << 10, 10.0, False),
        (100 << 20, 100.0, True),
    ):
        line.measured(num_bytes, seconds)
        assert line.is_thin == is_thin


def _train(task: TrainingTask) -> TrainedModel:
    trained = {name: np.asarray(values) * np.float32(1.0001) for name, values in task.model.items()}
    return TrainedModel(tensors=trained, num_examples=1, metrics={})


@SHARED_ON_SQLITE
@pytest.mark.parametrize(("thin", "num_deltas"), [(1 << 60, 3), (1, 0)], ids=["thin", "wide"])
def test_a_participant_asks_for_deltas_over_a_thin_line_only(
    shared_server: ServerProcess,
    shared_operator: httpx.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    thin: int,
    num_deltas: int,
) -> None:
    monkeypatch.setattr(link, "THIN_BYTES_A_SECOND", thin)
    run_id = create_run(shared_operator, {"w": WEIGHTS}, num_rounds=4, round={"quorum": 1})
    token = enrol(shared_operator).token
    done = participate_blocking(shared_server.url, run_id, _train, token=token, cache_dir=tmp_path)
    assert done.num_updates == 4
    with Stored(shared_server.database_url) as stored:
        made = stored.rows("SELECT kind FROM renditions WHERE run_id = :run AND blob_id IS NOT NULL", run=run_id)
    assert made == [("delta",)] * num_deltas
