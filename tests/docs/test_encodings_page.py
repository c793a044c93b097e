"""The page of encodings: its vectors hold for who has numpy and AES alone, and a server takes them."""

import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

from client_sdk.compression.decoder import decode_delta
from client_sdk.demo import mnist
from client_sdk.torch import image_dataset
from fl_protocol.arrays import decode
from fl_protocol.encodings.byte_shuffle import BlockCutter, shuffled, unshuffle_block
from fl_protocol.encodings.random_mask import mask_indices, parts_of_window
from fl_protocol.runs import RunSpec
from tests.docs.pages import CHECKOUT
from tests.support.encoded import decoded, drawn, tensors_of
from tests.support.participant import create_run, enrol, wait_for_run

PAGE: Final = (CHECKOUT / "docs" / "encodings.md").read_text()
VECTORS: Final[Mapping[str, Any]] = json.loads((CHECKOUT / "docs" / "encoding-vectors.json").read_text())
SHAPES: Final = {name: tuple(shape) for name, shape in VECTORS["shapes"].items()}
MODEL: Final = {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}
NAMES: Final = ["-".join(map(str, update["encoding"].values())) for update in VECTORS["updates"]]


@pytest.mark.parametrize("update", VECTORS["updates"], ids=NAMES)
def test_bodies_stand_for_what_the_vectors_say(update: Mapping[str, Any]) -> None:
    body = bytes.fromhex(update["hex"])
    assert f"sha256:{hashlib.sha256(body).hexdigest()}" == update["digest"]
    values = decoded(body, SHAPES, update["encoding"])
    assert {name: each.reshape(-1).tolist() for name, each in values.items()} == update["deltas"]
    encoding = RunSpec.model_validate({"encoding": update["encoding"]}).encoding
    _, metadata = tensors_of(body)
    mine = decode_delta(decode(body), metadata, model=MODEL, encoding=encoding)
    assert all((mine[name] == values[name]).all() for name in SHAPES)


@pytest.mark.parametrize("shared_server", ["sqlite"], indirect=True, scope="module")
def test_a_server_takes_the_bodies_and_adds_up_what_they_stand_for(shared_operator: httpx.Client) -> None:
    client = enrol(shared_operator)
    for update in VECTORS["updates"]:
        run_id = create_run(shared_operator, MODEL, num_rounds=1, round={"quorum": 1}, encoding=update["encoding"])
        sent = client.put(client.claim(run_id).json()["task_id"], bytes.fromhex(update["hex"]))
        assert (sent.status_code, sent.json().get("digest")) == (201, update["digest"])
        model, _ = tensors_of(wait_for_run(shared_operator, run_id, version=1).content)
        for name, shape in SHAPES.items():
            np.testing.assert_array_equal(model[name], np.reshape(update["deltas"][name], shape).astype(np.float32))


@pytest.mark.parametrize("mask", VECTORS["masks"], ids=lambda mask: mask["name"])
def test_drawn_elements_are_those_of_the_vectors_from_any_part_on(mask: Mapping[str, Any]) -> None:
    seed, name, size, count = bytes.fromhex(mask["mask_seed"]), mask["name"], mask["num_elements"], mask["count"]
    assert drawn(seed, name, size, count) == mask["indices"]
    for first in range(count):
        found = mask_indices(seed, name, num_elements=size, count=count, first=first, last=count)
        assert found.tolist() == mask["indices"][first:]
    for number, index in enumerate(mask["indices"]):
        assert parts_of_window(size, count, begin=index, end=index + 1) == (number, number + 1)


def test_the_program_on_the_page_shuffles_as_the_vectors_and_the_server_do() -> None:
    program = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert program is not None
    space: dict[str, Any] = {}
    exec(program[1], space)
    short, long = VECTORS["shuffled"]
    assert space["shuffle"](bytes.fromhex(short["hex"])).hex() == short["shuffled"]
    body = bytes(number * 7 % 251 for number in range(long["num_bytes"]))
    made = space["shuffle"](body)
    assert f"sha256:{hashlib.sha256(made).hexdigest()}" == long["shuffled_digest"]
    assert b"".join(shuffled([body[:100], body[100:]])) == made
    cutter = BlockCutter()
    blocks = [*cutter.feed(made[:5]), *cutter.feed(made[5:]), cutter.close()]
    assert b"".join(map(unshuffle_block, blocks)) == body


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "examples"))
    return importlib.import_module("thin_links")


def rows_of(text: str) -> dict[str, list[str]]:
    """Reads the rows of a table whose first column is an encoding's name."""
    cells = ([cell.strip() for cell in line.strip("│| ").replace("│", "|").split("|")] for line in text.splitlines())
    return {row[0]: row[1:] for row in cells if len(row) == 7}


def test_the_example_counts_what_travelled_and_measures_what_was_learnt(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = mnist.load()
    data = example.shares(images, num_examples=30)[:2]
    test = image_dataset(images.test_images[:100], images.test_labels[:100])
    topk = example.train(example.ENCODINGS["topk 1%"], data, test, num_rounds=2)
    assert (len(topk.num_bytes), len(topk.num_zstd_bytes), len(topk.accuracies)) == (4, 4, 2)
    assert topk.zstd_size < topk.size < 0.03 * 203_560
    example.report({"topk 1%": topk}, plot=str(tmp_path / "plot.svg"))
    assert rows_of(capsys.readouterr().out)["topk 1%"][:2] == [f"{topk.size:,.0f}", "1.0000"]
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")


def test_the_pages_table_has_every_row_of_the_example_within_what_is_promised(example: Any) -> None:
    rows = rows_of(PAGE)
    assert [name for name in rows if name in example.ENCODINGS] == list(example.ENCODINGS)
    assert float(rows["int8"][3]) < 0.25
    assert float(rows["topk 1%"][1]) < 0.03
    for name in ("int8", "topk 1%", "bfloat16", "float16"):
        assert abs(float(rows[name][5])) <= 0.5, name


@pytest.mark.soak
def test_the_accuracies_of_int8_and_topk_stay_within_half_a_point(example: Any) -> None:
    images = mnist.load()
    data = example.shares(images, num_examples=example.NUM_EXAMPLES)
    test = image_dataset(images.test_images, images.test_labels)
    plain, *others = (
        example.train(example.ENCODINGS[name], data, test, num_rounds=example.NUM_ROUNDS).accuracy
        for name in ("dense (float32)", "int8", "topk 1%")
    )
    assert plain > 0.88
    assert all(abs(accuracy - plain) <= 0.005 for accuracy in others)
