"""Which server optimizers a run may name: the choices are in the OpenAPI document, and what cannot work is refused."""

from typing import Any

import httpx
import pytest

from tests.support.refusals import assert_refused

SCHEDULES = ("ConstantSchedule", "StepSchedule", "CosineSchedule", "ExponentialSchedule")
OPTIMIZERS = ("SgdServerOptimizer", "AdagradServerOptimizer", "AdamServerOptimizer", "YogiServerOptimizer")
CONSTANT = {"kind": "constant", "warmup_rounds": 0}


@pytest.mark.parametrize(
    ("optimizer", "detail"),
    [
        (
            {"schedule": {"kind": "cosine", "num_rounds": 5}},
            "server_optimizer.schedule.num_rounds 5 ends before num_rounds 10; it must be at least that",
        ),
        (
            {"kind": "adam", "schedule": {"warmup_rounds": 12}},
            "server_optimizer.schedule.warmup_rounds 12 does not end before num_rounds 10; it must be at most 9",
        ),
        (
            {"kind": "yogi", "schedule": {"kind": "exponential", "factor": 1e-60}},
            "server_optimizer.schedule of kind exponential brings learning_rate 0.01 to 0 before num_rounds 10",
        ),
        ({"nesterov": True}, "server_optimizer.nesterov needs server_optimizer.momentum above 0; it is 0"),
        (
            {"kind": "rmsprop"},
            "server_optimizer.kind: 'rmsprop' is none of 'sgd', 'adagrad', 'adam', 'yogi'",
        ),
        (
            {"schedule": {"kind": "linear"}},
            "server_optimizer.schedule.kind: 'linear' is none of 'constant', 'step', 'cosine', 'exponential'",
        ),
        ({"kind": "adam", "momentum": 0.9}, "server_optimizer.momentum: Extra inputs are not permitted"),
        ({"kind": "adam", "beta2": 1}, "server_optimizer.beta2: Input should be less than 1"),
        ({"kind": "yogi", "beta1": -0.1}, "server_optimizer.beta1: Input should be greater than or equal to 0"),
        ({"kind": "adagrad", "tau": 0}, "server_optimizer.tau: Input should be greater than or equal to 0.000000001"),
        ({"schedule": {"kind": "step", "every": 2}}, "server_optimizer.schedule.factor: Field required"),
        (
            {"schedule": {"kind": "step", "every": 0, "factor": 1}},
            "server_optimizer.schedule.every: Input should be greater than or equal to 1",
        ),
    ],
)
def test_an_optimizer_that_cannot_work_is_refused_by_its_field(
    shared_operator: httpx.Client, optimizer: dict[str, Any], detail: str
) -> None:
    answer = shared_operator.post("/v1/runs", json={"num_rounds": 10, "server_optimizer": optimizer})
    assert assert_refused(answer, "invalid-request")["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("optimizer", "kept"),
    [
        (
            {"kind": "sgd", "learning_rate": 1.0, "momentum": 0.0},
            {"kind": "sgd", "learning_rate": 1.0, "momentum": 0.0, "nesterov": False, "schedule": CONSTANT},
        ),
        (
            {"kind": "adagrad", "schedule": {"warmup_rounds": 9}},
            {
                "kind": "adagrad",
                "learning_rate": 0.01,
                "beta1": 0.0,
                "tau": 0.001,
                "schedule": CONSTANT | {"warmup_rounds": 9},
            },
        ),
        (
            {"kind": "adam", "schedule": {"kind": "cosine", "num_rounds": 10}},
            {
                "kind": "adam",
                "learning_rate": 0.01,
                "beta1": 0.9,
                "beta2": 0.99,
                "tau": 0.001,
                "schedule": {"kind": "cosine", "num_rounds": 10, "final_factor": 0.0, "warmup_rounds": 0},
            },
        ),
    ],
)
def test_an_optimizer_comes_back_with_its_defaults(
    shared_operator: httpx.Client, optimizer: dict[str, Any], kept: dict[str, Any]
) -> None:
    made = shared_operator.post("/v1/runs", json={"num_rounds": 10, "server_optimizer": optimizer}).json()
    assert shared_operator.get(f"/v1/runs/{made['run_id']}").json()["spec"]["server_optimizer"] == kept


def test_the_openapi_document_shows_every_choice(shared_operator: httpx.Client) -> None:
    schemas = shared_operator.get("/openapi.json").json()["components"]["schemas"]
    # A model that is sent and received alike has one schema; else its name ends in -Input or -Output.
    spec = schemas.get("RunSpec-Input") or schemas["RunSpec"]
    assert _choices(spec["properties"]["server_optimizer"]) == set(OPTIMIZERS)
    for name in OPTIMIZERS:
        optimizer = schemas.get(f"{name}-Input") or schemas[name]
        assert _choices(optimizer["properties"]["schedule"]) == set(SCHEDULES)
    assert schemas["CosineSchedule"]["required"] == ["kind", "num_rounds"]


def _choices(field: dict[str, Any]) -> set[str]:
    return {one["$ref"].rsplit("/", 1)[-1].removesuffix("-Input") for one in field["oneOf"]}
