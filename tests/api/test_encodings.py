"""Encodings on the server: what arrives is what its bytes stand for, and what cannot be is refused by name."""

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import pytest

from client_sdk.compression.encoder import encode_delta
from client_sdk.transfer import Body, body_of_tensors, compressed_body
from fl_protocol.arrays import RawTensor
from fl_protocol.encodings.byte_shuffle import shuffled
from fl_protocol.runs import RunSpec
from fl_protocol.specs.encodings import ZstdCompression
from tests.support.encoded import decoded, tensors_of
from tests.support.participant import (
    MEDIA_TYPE,
    Participant,
    Tensors,
    create_run,
    enrol,
    update_body,
    wait_for_run,
)
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MODEL: Tensors = {
    "matrix": np.zeros((6, 20), dtype=np.float32),
    "bias": np.zeros(5, dtype=np.float32),
    "half": np.zeros((2, 9), dtype=np.float16),
    "count": np.array([1]),
}
FLOATS = {name: values.shape for name, values in MODEL.items() if name != "count"}
ZSTD = {"compression": {"kind": "zstd"}}

KINDS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "float32": {"kind": "dense", "dtype": "float32"},
    "bfloat16": {"kind": "dense", "dtype": "bfloat16"},
    "float16": {"kind": "dense", "dtype": "float16"},
    "int8": {"kind": "int8"},
    "int4": {"kind": "int4"},
    "topk": {"kind": "topk", "count": 4},
    "random_mask": {"kind": "random_mask", "fraction": 0.25},
}


pytestmark = pytest.mark.parametrize(
    "shared_server", ["sqlite", pytest.param("postgres", marks=pytest.mark.soak)], indirect=True, scope="module"
)


def delta(seed: int) -> Tensors:
    source = np.random.default_rng(seed)
    return {name: (source.normal(size=shape) * 0.1).astype(MODEL[name].dtype) for name, shape in FLOATS.items()}


def _compressed(body: Body, *, level: int) -> tuple[bytes, dict[str, str]]:
    with TemporaryDirectory() as folder, compressed_body(body, level=level, folder=Path(folder)) as coded:
        return b"".join(coded.pieces()), coded.headers


def sent(client: Participant, run_id: str, seed: int, encoding: Mapping[str, Any], scale: float = 1) -> bytes:
    """Answers a client's task with a delta in the run's encoding and gives the body as it is without a coding."""
    task = client.claim(run_id).json()
    spec = RunSpec.model_validate({"encoding": task["encoding"]}).encoding
    scaled = {name: (values * scale).astype(values.dtype) for name, values in delta(seed).items()}
    made = encode_delta(scaled, spec)
    plain = body_of_tensors(made.tensors, {**made.metadata, "num_examples": str(seed)})
    content, sent, headers = b"".join(plain.pieces()), b"".join(plain.pieces()), plain.headers
    if isinstance(spec.compression, ZstdCompression):
        sent, headers = _compressed(plain, level=spec.compression.level)
    answer = client.put(task["task_id"], sent, **headers)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["num_bytes"], answer.json()["digest"]) == (len(content), plain.digest)
    assert len(content) <= task["max_num_bytes"]
    return content


@pytest.mark.parametrize("compression", [{}, ZSTD], ids=["plain", "zstd"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_new_model_is_the_mean_of_what_the_bytes_stand_for(
    shared_operator: httpx.Client, kind: str, compression: dict[str, Any]
) -> None:
    encoding = KINDS[kind] | compression
    run_id = create_run(shared_operator, MODEL, num_rounds=1, round={"quorum": 2}, encoding=encoding)
    bodies = [sent(enrol(shared_operator), run_id, seed, encoding) for seed in (1, 3)]
    wait_for_run(shared_operator, run_id, version=1)
    found, _ = tensors_of(shared_operator.get(f"/v1/runs/{run_id}/models/1").content)
    values = [decoded(body, FLOATS, encoding) for body in bodies]
    for name in FLOATS:
        mean = (values[0][name] + 3 * values[1][name]) / 4
        np.testing.assert_array_equal(found[name], mean.astype(MODEL[name].dtype))
        assert np.abs(mean).max() > 0
    declared = shared_operator.get(f"/v1/runs/{run_id}").json()["spec"]["encoding"]
    assert (declared["kind"], declared["compression"]["kind"]) == (encoding["kind"], "zstd" if compression else "none")


def test_scaffolds_control_variates_travel_whole_beside_an_encoded_delta(shared_operator: httpx.Client) -> None:
    algorithm = {"kind": "scaffold", "num_clients": 2}
    run_id = create_run(
        shared_operator, MODEL, num_rounds=1, round={"quorum": 1}, encoding=KINDS["int8"], algorithm=algorithm
    )
    client, control = enrol(shared_operator), {f"control:{name}": np.full(FLOATS[name], 2, "f4") for name in FLOATS}
    task = client.claim(run_id).json()
    made = encode_delta(delta(1) | control, RunSpec.model_validate({"encoding": task["encoding"]}).encoding)
    body = b"".join(body_of_tensors(made.tensors, {"num_examples": "1"}).pieces())
    assert client.put(task["task_id"], body).status_code == 201
    wait_for_run(shared_operator, run_id, version=1)
    kept, _ = tensors_of(shared_operator.get(f"/v1/runs/{run_id}/models/1/control-variate").content)
    assert all((kept[name] == 1).all() for name in control)


PRIVATE = {
    "privacy": {
        "kind": "central_gaussian",
        "clipping_norm": 1.0,
        "target_epsilon": 1e6,
        "delta": 1e-6,
        "noise_multiplier": 0.01,
    },
    "strategy": {"weighting": "uniform"},
    "num_rounds": 1,
    "round": {"quorum": 2},
}


@pytest.mark.parametrize("kind", ["int8", "int4", "topk", "random_mask", "bfloat16"])
def test_a_private_run_clips_what_the_bytes_stand_for(shared_operator: httpx.Client, kind: str) -> None:
    model = {name: MODEL[name] for name in FLOATS}
    run_id = create_run(shared_operator, model, encoding=KINDS[kind], **PRIVATE)
    bodies = [sent(enrol(shared_operator), run_id, seed, KINDS[kind], scale=10) for seed in (1, 2)]
    wait_for_run(shared_operator, run_id, version=1)
    found, _ = tensors_of(shared_operator.get(f"/v1/runs/{run_id}/models/1").content)
    values = [decoded(body, FLOATS, KINDS[kind]) for body in bodies]
    norms = [math.sqrt(sum(float(np.square(value).sum()) for value in one.values())) for one in values]
    assert min(norms) > 1.5
    for name in FLOATS:
        mean = sum(one[name] / norm for one, norm in zip(values, norms, strict=True)) / 2
        np.testing.assert_allclose(found[name], mean, atol=0.05)


def test_a_private_run_counts_a_scale_that_is_no_number_as_zero_and_refuses_indices_that_no_tensor_has(
    shared_operator: httpx.Client,
) -> None:
    model = {"matrix": MODEL["matrix"]}
    run_id = create_run(shared_operator, model, encoding=KINDS["int8"], **PRIVATE)
    for scale in (np.nan, 0.1):
        client = enrol(shared_operator)
        tensors = {"scales:matrix": np.full(6, scale, "f4"), "matrix": np.eye(6, 20, dtype="i1")}
        body = b"".join(body_of_tensors(tensors, {"num_examples": "1"}).pieces())
        assert client.put(client.claim(run_id).json()["task_id"], body).status_code == 201
    wait_for_run(shared_operator, run_id, version=1)
    found, _ = tensors_of(shared_operator.get(f"/v1/runs/{run_id}/models/1").content)
    np.testing.assert_allclose(found["matrix"], np.eye(6, 20) * 0.05, atol=0.05)
    run_id = create_run(shared_operator, model, encoding=KINDS["topk"], **PRIVATE)
    client = enrol(shared_operator)
    tensors = {"indices:matrix": np.array([0, 1, 2, 120], "u4"), "matrix": np.ones(4, "f4")}
    body = b"".join(body_of_tensors(tensors, {"num_examples": "1"}).pieces())
    refused = client.put(client.claim(run_id).json()["task_id"], body)
    assert_refused(refused, "value-out-of-range", "'indices:matrix'", "120 at element 3", "120 elements")


def _with(tensors: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    """Changes tensors, or leaves out those that become None; `scales_` in a name stands for `scales:`."""
    named = {name.replace("_", ":"): tensor for name, tensor in changed.items()}
    return {name: tensor for name, tensor in (dict(tensors) | named).items() if tensor is not None}


W8 = {"scales:w": np.full(4, 0.5, "f4"), "w": np.ones((4, 20), "i1")}
W4 = {
    "scales:w": np.full(4, 0.5, "f4"),
    "scales:b": np.ones(1, "f4"),
    "w": np.full(40, 0x11, "u1"),
    "b": np.array([17, 1], "u1"),
}
TOP = {"indices:w": np.array([0, 7, 79], "u4"), "w": np.ones(3, "f4")}
MASK = {"w": np.ones(3, "f4")}
SEED = {"mask_seed": "ab" * 32}


def _at(array: Any, index: Any, value: float) -> Any:
    changed = array.copy()
    changed[index] = value
    return changed


BROKEN: dict[str, list[tuple[dict[str, Any], dict[str, str], str, tuple[str, ...]]]] = {
    "int8": [
        (_with(W8, scales_w=None), {}, "structure-mismatch", ("'scales:w' is missing", "F32 of shape [4]")),
        (_with(W8, w=None), {}, "structure-mismatch", ("'w' is missing", "I8 of shape [4, 20]")),
        ({"w": W8["w"], "scales:w": W8["scales:w"]}, {}, "structure-mismatch", ("'scales:w' lies after 'w'",)),
        (_with(W8, scales_w=np.ones(5, "f4")), {}, "structure-mismatch", ("'scales:w' is F32 of shape [5]",)),
        (_with(W8, scales_w=np.ones(4, "f8")), {}, "structure-mismatch", ("'scales:w' is F64",)),
        (_with(W8, w=np.ones((4, 20), "f4")), {}, "structure-mismatch", ("'w' is F32", "I8 of shape [4, 20]")),
        (_with(W8, w=np.ones(80, "i1")), {}, "structure-mismatch", ("'w' is I8 of shape [80]",)),
        (_with(W8, indices_w=np.ones(3, "u4")), {}, "structure-mismatch", ("'indices:w' is not in",)),
        (_with(W8, scales_w=_at(W8["scales:w"], 2, np.nan)), {}, "non-finite", ("'scales:w'", "nan at element 2")),
        (_with(W8, scales_w=_at(W8["scales:w"], 3, np.inf)), {}, "non-finite", ("'scales:w'", "inf at element 3")),
        (_with(W8, scales_w=_at(W8["scales:w"], 0, -1)), {}, "value-out-of-range", ("'scales:w'", "-1.0 at element 0")),
        (_with(W8, w=_at(W8["w"], (1, 5), -128)), {}, "value-out-of-range", ("'w'", "code -128 at element 25", "-127")),
        (
            _with(W8, scales_w=_at(W8["scales:w"], 3, 400), w=_at(W8["w"], (3, 2), -3)),
            {},
            "value-out-of-range",
            ("'w'", "magnitude 1200.0 at element 62", "at most 1024.0"),
        ),
    ],
    "int4": [
        (_with(W4, w=np.full(41, 0x11, "u1")), {}, "structure-mismatch", ("'w' is U8 of shape [41]", "[40]")),
        (_with(W4, w=_at(W4["w"], 3, 0x81)), {}, "value-out-of-range", ("'w'", "code -8 at element 7", "-7 to 7")),
        (_with(W4, b=np.array([17, 0x21], "u1")), {}, "value-out-of-range", ("'b'", "2 in the high half", "3 codes")),
        (_with(W4, scales_b=np.array([2000], "f4")), {}, "value-out-of-range", ("'b'", "2000.0 at element 0")),
    ],
    "topk": [
        (_with(TOP, indices_w=None), {}, "structure-mismatch", ("'indices:w' is missing", "U32 of shape [3]")),
        (_with(TOP, w=np.ones(4, "f4")), {}, "structure-mismatch", ("'w' is F32 of shape [4]", "[3]")),
        (
            _with(TOP, indices_w=np.array([0, 7, 80], "u4")),
            {},
            "value-out-of-range",
            ("80 at element 2", "80 elements"),
        ),
        (_with(TOP, indices_w=np.array([7, 7, 9], "u4")), {}, "value-out-of-range", ("7 at element 1 behind 7",)),
        (_with(TOP, indices_w=np.array([7, 9, 8], "u4")), {}, "value-out-of-range", ("8 at element 2 behind 9",)),
        (_with(TOP, w=np.array([1, np.nan, 1], "f4")), {}, "non-finite", ("'w'", "element 1")),
        (_with(TOP, w=np.array([1, 1, -1025], "f4")), {}, "value-out-of-range", ("'w'", "1025.0", "1024.0")),
    ],
    "random_mask": [
        (MASK, {}, "invalid-metadata", ("mask_seed is missing",)),
        (MASK, {"mask_seed": "AB" * 32}, "invalid-metadata", ("mask_seed", "64 lower-case hexadecimal digits")),
        (MASK, {"mask_seed": "ab" * 31}, "invalid-metadata", ("mask_seed",)),
        (_with(TOP), SEED, "structure-mismatch", ("'indices:w' is not in",)),
        ({"w": np.ones(2, "f4")}, SEED, "structure-mismatch", ("'w' is F32 of shape [2]",)),
        ({"w": np.full(3, np.inf, "f4")}, SEED, "non-finite", ("'w'", "element 0")),
    ],
    "bfloat16": [
        ({"w": np.ones((4, 20), "f4")}, {}, "structure-mismatch", ("'w' is F32", "BF16 of shape [4, 20]")),
        ({"w": RawTensor("BF16", np.full((4, 20), 0x7F80, "u2"))}, {}, "non-finite", ("'w'", "element 0")),
        ({"w": RawTensor("BF16", np.full((4, 20), 0x4481, "u2"))}, {}, "value-out-of-range", ("'w'", "1032.0")),
    ],
}


@pytest.fixture(scope="module")
def targets(shared_server: ServerProcess) -> Iterator[tuple[dict[str, tuple[httpx.Client, str]], Stored]]:
    """A client of a run of each encoding, with the address of its open task; and the database."""
    with shared_server.http() as operator, Stored(shared_server.database_url) as stored:
        client, opened = enrol(operator), {}
        with shared_server.http(client.token) as own:
            for kind in BROKEN:
                model = {"w": np.zeros((4, 20), "f4")} | ({"b": np.zeros(3, "f4")} if kind == "int4" else {})
                encoding = KINDS[kind] | ({"count": 3, "fraction": None} if kind in ("topk", "random_mask") else {})
                run_id = create_run(operator, model, round={"quorum": 2}, encoding=encoding)
                opened[kind] = own, f"/v1/tasks/{client.claim(run_id).json()['task_id']}/update"
            yield opened, stored


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind, cases in BROKEN.items() for number in range(len(cases))]
)
def test_what_an_encoding_does_not_allow_is_refused_by_name_and_leaves_nothing(
    targets: tuple[dict[str, tuple[httpx.Client, str]], Stored], kind: str, number: int
) -> None:
    opened, stored = targets
    tensors, metadata, slug, named = BROKEN[kind][number]
    http, url = opened[kind]
    body = body_of_tensors(tensors, {"num_examples": "1", **metadata})
    before = stored.counts()
    for content, headers in ((b"".join(body.pieces()), body.headers), _compressed(body, level=1)):
        answer = http.put(url, content=content, headers={"Content-Type": MEDIA_TYPE, **headers})
        assert_refused(answer, slug, *named)
    assert stored.counts() == before


def test_codings_that_the_server_does_not_know_are_refused(
    targets: tuple[dict[str, tuple[httpx.Client, str]], Stored],
) -> None:
    http, url = targets[0]["int8"]
    body = b"".join(body_of_tensors(W8, {"num_examples": "1"}).pieces())
    for coding in ("byte-shuffle", "zstd, byte-shuffle", "gzip"):
        answer = http.put(url, content=body, headers={"Content-Type": MEDIA_TYPE, "Content-Encoding": coding})
        assert_refused(answer, "unsupported-media-type", "byte-shuffle, zstd")
    # Shuffled and announced as plain zstd it is no safetensors file.
    coded, _ = _compressed(body_of_tensors(W8, {"num_examples": "1"}), level=1)
    plain = http.put(url, content=coded, headers={"Content-Type": MEDIA_TYPE, "Content-Encoding": "zstd"})
    assert_refused(plain, "malformed-update")
    # A bomb costs a piece of the body, whatever lies on top of it.
    header = (2).to_bytes(8, "little") + b"{}"
    bomb = zstd.compress(b"".join(shuffled([header, bytes(64 << 20)])))
    answer = http.put(url, content=bomb, headers={"Content-Type": MEDIA_TYPE, "Content-Encoding": "byte-shuffle, zstd"})
    assert len(bomb) < 100_000
    assert answer.status_code in (400, 413, 422), answer.text


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"encoding": {"kind": "topk"}}, ("encoding.fraction or encoding.count",)),
        ({"encoding": {"kind": "topk", "fraction": 0.1, "count": 3}}, ("encoding.fraction or encoding.count",)),
        ({"encoding": {"kind": "topk", "fraction": 0.0}}, ("encoding.fraction",)),
        ({"encoding": {"kind": "random_mask", "count": 0}}, ("encoding.count",)),
        ({"encoding": {"kind": "int2"}}, ("encoding",)),
        ({"encoding": {"kind": "int8", "bits": 8}}, ("bits",)),
        ({"encoding": {"kind": "dense", "dtype": "float8"}}, ("dtype",)),
        ({"encoding": {"kind": "int8", "compression": {"kind": "zstd", "level": 23}}}, ("level",)),
        ({"encoding": KINDS["topk"], "strategy": {"kind": "median"}}, ("strategy.kind 'median'", "'topk'", "'int8'")),
        ({"encoding": KINDS["random_mask"], "strategy": {"kind": "geometric_median"}}, ("'random_mask'",)),
        *(
            (
                {"encoding": encoding, "secure_aggregation": {"kind": "pairwise"}, "round": {"quorum": 30}},
                (f"encoding.kind '{encoding['kind']}'", "secure_aggregation.kind 'pairwise'", "take"),
            )
            for encoding in (KINDS["topk"], KINDS["int8"], KINDS["bfloat16"], KINDS["dense"] | ZSTD)
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused_when_the_run_is_created(
    shared_operator: httpx.Client, changed: dict[str, Any], named: tuple[str, ...]
) -> None:
    before = len(shared_operator.get("/v1/runs").json()["items"])
    assert_refused(shared_operator.post("/v1/runs", json={"name": "no"} | changed), "invalid-request", *named)
    assert len(shared_operator.get("/v1/runs").json()["items"]) == before


def test_error_feedback_does_not_go_with_noise_of_the_clients_own(shared_operator: httpx.Client) -> None:
    noise = {"privacy": {"kind": "local_gaussian", "clipping_norm": 1.0, "target_epsilon": 5.0, "delta": 1e-6}}
    uniform = noise | {"strategy": {"weighting": "uniform"}}
    refused = shared_operator.post("/v1/runs", json={"name": "no", "encoding": KINDS["topk"]} | uniform)
    assert_refused(refused, "invalid-request", "encoding.error_feedback", "'local_gaussian'", "false")
    without = KINDS["topk"] | {"error_feedback": False}
    taken = shared_operator.post("/v1/runs", json={"name": "yes", "encoding": without} | uniform)
    assert taken.status_code == 201, taken.text


def test_a_model_whose_names_an_encoding_uses_is_refused(shared_operator: httpx.Client) -> None:
    for name, kind in (("scales:w", "int8"), ("indices:w", "topk"), ("control:w", "int4")):
        run_id = shared_operator.post("/v1/runs", json={"name": "x", "encoding": KINDS[kind]}).json()["run_id"]
        body = update_body({name: np.zeros(3, "f4")}, num_examples=1)
        put = shared_operator.put(f"/v1/runs/{run_id}/models/0", content=body, headers={"Content-Type": MEDIA_TYPE})
        assert_refused(put, "structure-mismatch", repr(name), "rename it")


def test_a_body_larger_than_its_encoding_can_be_is_refused(shared_operator: httpx.Client) -> None:
    model = {"w": np.zeros((500, 1000), "f4")}
    limits = {}
    for kind in ("dense", "bfloat16", "int8", "int4", "topk"):
        run_id = create_run(shared_operator, model, round={"quorum": 2}, encoding=KINDS[kind])
        client = enrol(shared_operator)
        task = client.claim(run_id).json()
        limits[kind] = task["max_num_bytes"]
        if kind != "dense":
            body = update_body(model, num_examples=1)
            assert_refused(client.put(task["task_id"], body), "too-large", str(limits[kind]))
    assert 2_000_000 < limits["dense"] < 2_100_000
    assert limits["bfloat16"] < 1_100_000
    assert limits["int8"] < 600_000
    assert limits["int4"] < 350_000
    assert limits["topk"] < 100_000
