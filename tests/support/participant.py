"""A participant written with nothing but an HTTP library and numpy, as anyone could in any language."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]

_TYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
MEDIA_TYPE = "application/vnd.safetensors"


def pack(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Writes safetensors bytes: 8 bytes of length, a JSON header, the tensors."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    begin = 0
    for name, values in tensors.items():
        end = begin + values.nbytes
        header[name] = {"dtype": _NAMES[values.dtype], "shape": list(values.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(values.tobytes() for values in tensors.values())


def unpack(body: bytes) -> Tensors:
    """Reads safetensors bytes."""
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    data = body[8 + length :]
    tensors: Tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            values = np.frombuffer(data[begin:end], dtype=_TYPES[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def update_body(
    delta: Mapping[str, NDArray[Any]], *, num_examples: int, metrics: Mapping[str, float] | None = None
) -> bytes:
    """Writes an update's body."""
    metadata = {"num_examples": str(num_examples)}
    if metrics is not None:
        metadata["metrics"] = json.dumps(dict(metrics))
    return pack(delta, metadata)


_opened: list[httpx.Client] = []


def closing_later(http: httpx.Client) -> httpx.Client:
    """Has a connection closed when the test is over."""
    _opened.append(http)
    return http


def close_connections() -> None:
    """Closes every connection that `enrol` opened."""
    while _opened:
        _opened.pop().close()


@dataclass
class Participant:
    """One client of a run; `delta` computes what it sends from its task and the model's tensors."""

    http: httpx.Client
    client_id: str
    token: str

    def claim(self, run_id: str, wait: float = 0) -> httpx.Response:
        """Asks for a task."""
        return self.http.post(f"/v1/runs/{run_id}/tasks", params={"wait": wait})

    def put(self, task_id: str, body: bytes, **headers: str) -> httpx.Response:
        """Sends an update."""
        return self.http.put(
            f"/v1/tasks/{task_id}/update", content=body, headers={"Content-Type": MEDIA_TYPE} | headers
        )

    def model(self, task: Mapping[str, Any]) -> Tensors:
        """Downloads a task's base model."""
        answer = self.http.get(task["model_url"])
        assert answer.status_code == 200, answer.text
        return unpack(answer.content)

    def take_part(self, run_id: str, delta: Callable[[Mapping[str, Any], Tensors], bytes], wait: float = 20) -> int:
        """Takes part until the run is finished; gives the number of updates that were accepted."""
        accepted = 0
        while True:
            answer = self.claim(run_id, wait)
            if answer.status_code == 410:
                return accepted
            if answer.status_code == 204:
                continue
            assert answer.status_code in (200, 201), answer.text
            task = answer.json()
            sent = self.put(task["task_id"], delta(task, self.model(task)))
            assert sent.status_code in (200, 201, 410), sent.text
            accepted += sent.status_code != 410


def small_model(seed: int = 0) -> Tensors:
    """Makes a model of three small tensors."""
    generator = np.random.default_rng(seed)
    return {
        "layer.weight": generator.normal(size=(5, 7)).astype(np.float32),
        "layer.bias": generator.normal(size=7).astype(np.float32),
        "scale": np.array(1.0, dtype=np.float32),
    }


def create_run(http: httpx.Client, model: Mapping[str, NDArray[Any]], *, start: bool = True, **spec: Any) -> str:
    """Creates a run with an initial model, starts it, and gives its id."""
    made = http.post("/v1/runs", json={"name": "test"} | spec)
    assert made.status_code == 201, made.text
    run_id: str = made.json()["run_id"]
    put = http.put(f"/v1/runs/{run_id}/models/0", content=pack(model), headers={"Content-Type": MEDIA_TYPE})
    assert put.status_code == 201, put.text
    if start:
        started = http.post(f"/v1/runs/{run_id}/start")
        assert started.status_code == 200, started.text
    return run_id


def enrol(http: httpx.Client, name: str = "client-1", **attributes: str) -> Participant:
    """Enrols a client through the operator's connection and opens a connection of its own."""
    made = http.post("/v1/clients", json={"name": name, "attributes": attributes})
    assert made.status_code == 201, made.text
    fields = made.json()
    own = httpx.Client(
        base_url=http.base_url,
        headers={"Authorization": f"Bearer {fields['token']}"},
        timeout=http.timeout,
        trust_env=False,
        verify=False,  # plain HTTP: reading the certificates would cost more than most requests
    )
    closing_later(own)
    return Participant(own, fields["client_id"], fields["token"])


def wait_for_run(http: httpx.Client, run_id: str, *, version: int, seconds: float = 60) -> httpx.Response:
    """Waits until the run has published a version and gives the answer with the newest model."""
    answer = http.get(
        f"/v1/runs/{run_id}/models/latest",
        params={"after": version - 1, "wait": min(seconds, 60)},
        timeout=seconds + 10,
    )
    assert answer.status_code == 200, answer.text
    return answer


def evaluated_run(http: httpx.Client, client: Participant) -> str:
    """Runs a round and its evaluation, so that the run has a best version, and gives the run's id."""
    target = {"metric": "accuracy", "mode": "max", "value": 2}
    run_id = create_run(
        http, small_model(), num_rounds=3, round={"quorum": 1}, evaluation={"every": 1, "target": target}
    )
    task = client.claim(run_id, wait=20).json()
    delta = {name: values * 0 for name, values in small_model().items()}
    assert client.put(task["task_id"], update_body(delta, num_examples=1)).status_code == 201
    wait_for_run(http, run_id, version=1)
    task = client.claim(run_id, wait=20).json()
    report = {"num_examples": 1, "metrics": {"accuracy": 0.5}}
    assert client.http.put(f"/v1/tasks/{task['task_id']}/evaluation", json=report).status_code == 201
    return run_id


def scaffold_run(http: httpx.Client, client: Participant) -> str:
    """Runs a round of SCAFFOLD, so that version 1 has a control variate, and gives the run's id."""
    algorithm = {"kind": "scaffold", "num_clients": 1}
    run_id = create_run(http, small_model(), num_rounds=3, round={"quorum": 1, "cohort_size": 1}, algorithm=algorithm)
    task = client.claim(run_id, wait=20).json()
    delta = {name: values * 0 for name, values in small_model().items()}
    controls = {f"control:{name}": values for name, values in delta.items()}
    assert client.put(task["task_id"], update_body(delta | controls, num_examples=1)).status_code == 201
    wait_for_run(http, run_id, version=1)
    return run_id
