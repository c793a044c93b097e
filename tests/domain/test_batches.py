"""When waiting updates are folded in a batch, and which rounds can be."""

import pytest

from aggregator_service.domain import batches
from fl_protocol.runs import RunSpec

MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("num_waiting", "num_awaited", "num_bytes", "due"),
    [
        (4, 46, 40 * MEBIBYTE, True),
        (3, 47, 40 * MEBIBYTE, False),
        (4, 2, 40 * MEBIBYTE, True),
        (4, 1, 40 * MEBIBYTE, False),
        (7, 1, 40 * MEBIBYTE, False),
        (8, 1, 40 * MEBIBYTE, True),
        (4, 46, 4 * MEBIBYTE, True),
        (4, 46, 3 * MEBIBYTE, False),
        (40, 60, MEBIBYTE // 2, True),
        (1000, 1000, 0, False),
    ],
)
def test_a_batch_is_due_when_it_is_worth_its_cost_and_not_in_the_way(
    num_waiting: int, num_awaited: int, num_bytes: int, due: bool
) -> None:
    assert batches.is_due(num_waiting, num_awaited=num_awaited, num_bytes=num_bytes) is due


@pytest.mark.parametrize("quorum", range(2, 6))
def test_a_round_of_few_clients_is_folded_all_at_once(quorum: int) -> None:
    assert not any(
        batches.is_due(counted, num_awaited=quorum - counted, num_bytes=1 << 40) for counted in range(quorum)
    )


def test_what_is_left_to_the_end_does_not_grow_with_the_round() -> None:
    for quorum in (8, 50, 1000):
        waiting = left = 0
        for counted in range(1, quorum):
            waiting += 1
            if batches.is_due(waiting, num_awaited=quorum - counted, num_bytes=1 << 30):
                waiting = 0
            left = waiting + 1
        assert left <= 2 * batches.MIN_UPDATES


@pytest.mark.parametrize(
    ("choices", "in_parts"),
    [
        ({}, True),
        ({"strategy": {"weighting": "uniform"}}, True),
        ({"training": {"proximal_mu": 0.1}}, True),
        ({"strategy": {"max_update_norm": {"kind": "clip", "norm": 1.0}}}, True),
        ({"server_optimizer": {"kind": "adam"}}, True),
        ({"strategy": {"max_share": 0.6}}, False),
        ({"strategy": {"weighting": {"kind": "inverse_stratum_size", "attribute": "region"}}}, False),
        ({"strategy": {"kind": "median"}}, False),
        ({"algorithm": {"kind": "fednova"}, "training": {"learning_rate": 0.1}}, False),
        ({"algorithm": {"kind": "scaffold", "num_clients": 10}, "training": {"learning_rate": 0.1}}, False),
    ],
)
def test_only_sums_whose_terms_do_not_depend_on_each_other_are_added_up_in_parts(
    choices: dict[str, object], in_parts: bool
) -> None:
    assert batches.adds_up_in_parts(RunSpec.model_validate(choices)) is in_parts
