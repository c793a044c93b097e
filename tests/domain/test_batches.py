"""When waiting updates are folded in a batch, and which rounds can be."""

import pytest

from aggregator_service.domain import batches
from aggregator_service.domain.batches import Sizes
from fl_protocol.runs import RunSpec

MILLION = 1_000_000
DENSE = Sizes(update_bytes=40 * MILLION, num_parameters=10 * MILLION)
HALF = Sizes(update_bytes=20 * MILLION, num_parameters=10 * MILLION)
INT8 = Sizes(update_bytes=10 * MILLION, num_parameters=10 * MILLION)
TOP_1_PERCENT = Sizes(update_bytes=800_000, num_parameters=10 * MILLION)
SMALL = Sizes(update_bytes=400_000, num_parameters=100_000)


@pytest.mark.parametrize(
    ("num_waiting", "num_awaited", "sizes", "due"),
    [
        (4, 46, DENSE, True),
        (3, 47, DENSE, False),
        (4, 2, DENSE, True),
        (4, 1, DENSE, False),
        (7, 1, DENSE, False),
        (8, 1, DENSE, True),
        (7, 93, HALF, False),
        (8, 92, HALF, True),
        (15, 85, INT8, False),
        (16, 84, INT8, True),
        (31, 1, INT8, False),
        (32, 1, INT8, True),
        (199, 800, TOP_1_PERCENT, False),
        (200, 800, TOP_1_PERCENT, True),
        (41, 60, SMALL, False),
        (42, 60, SMALL, True),
        (99, 200, SMALL, False),
        (100, 200, SMALL, True),
        (167, 900, SMALL, False),
        (168, 900, SMALL, True),
        (83, 0, SMALL, False),
        (84, 0, SMALL, True),
        (84, -3, SMALL, True),
    ],
)
def test_a_batch_is_due_when_it_is_worth_its_cost_and_not_in_the_way(
    num_waiting: int, num_awaited: int, sizes: Sizes, due: bool
) -> None:
    assert batches.is_due(num_waiting, num_awaited=num_awaited, sizes=sizes) is due


@pytest.mark.parametrize("quorum", range(2, 6))
def test_a_round_of_few_clients_is_folded_all_at_once(quorum: int) -> None:
    assert not any(batches.is_due(counted, num_awaited=quorum - counted, sizes=DENSE) for counted in range(quorum))


@pytest.mark.parametrize("sizes", [DENSE, HALF, INT8, TOP_1_PERCENT, SMALL])
def test_what_is_left_to_the_end_does_not_grow_with_the_round(sizes: Sizes) -> None:
    for quorum in (8, 50, 1000, 4096):
        waiting = left = 0
        for counted in range(1, quorum):
            waiting += 1
            if batches.is_due(waiting, num_awaited=quorum - counted, sizes=sizes):
                waiting = 0
            left = waiting + 1
        assert left * sizes.update_bytes <= 2 * sizes.batch_bytes + sizes.update_bytes


def test_a_batch_has_no_more_updates_than_a_sealed_round_may_wait_for() -> None:
    assert (DENSE.most_updates, INT8.most_updates, TOP_1_PERCENT.most_updates) == (16, 64, 800)
    assert Sizes(update_bytes=1 << 40, num_parameters=10).most_updates == batches.MIN_UPDATES


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
