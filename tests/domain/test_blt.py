"""Correlated noise: the shipped matrices cost and give what the table says, and streaming is multiplying by C^-1."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz

from aggregator_service.domain.privacy import blt
from aggregator_service.domain.privacy.blt import Blt, Participation
from fl_protocol.privacy import noise

KEY = bytes(range(32))
TABLE = {
    (100, 100, 1): (1.58708, 2.537, 2.531),
    (200, 20, 10): (6.36212, 13.27, 13.68),
    (500, 100, 5): (4.33790, 8.444, 8.558),
    (1000, 100, 10): (6.84212, 14.95, 15.69),
    (2000, 400, 4): (4.05301, 8.305, 8.603),
}
"""(rounds, separation, participations): sensitivity, worst error of the BLT, worst error of the BSR."""


def participation(num_rounds, separation, max_participations):
    return Participation(num_rounds=num_rounds, separation=separation, max_participations=max_participations)


def lower_triangular(column):
    return toeplitz(column, np.zeros(column.size))


def stream(matrix, rows):
    buffers = blt.init(matrix, rows.shape[1])
    for row in rows:
        noise_of_round, buffers = blt.step(matrix, row, buffers=buffers)
        yield noise_of_round


@pytest.mark.parametrize("shape", TABLE)
def test_a_shipped_matrix_costs_and_gives_what_the_table_says(shape):
    wanted = participation(*shape)
    chosen = blt.choose(wanted)
    cost, error, _ = TABLE[shape]
    assert chosen.made_for == wanted
    assert chosen.blt == blt.SHIPPED[wanted]
    assert chosen.sensitivity == pytest.approx(cost, abs=6e-6)
    assert chosen.worst_error == pytest.approx(error, rel=6e-4)
    assert chosen.independent_error == pytest.approx(math.sqrt(shape[0] * shape[2]))


@pytest.mark.parametrize("shape", TABLE)
def test_the_banded_square_root_gives_what_the_table_says(shape):
    wanted = participation(*shape)
    column = blt.square_root_coefficients(wanted.separation, wanted.num_rounds)
    assert column[: min(5, column.size)].tolist() == [1, 0.5, 0.375, 0.3125, 0.2734375]
    assert not column[wanted.separation :].any()
    bands = column[: wanted.separation]
    inverse = np.zeros(column.size)
    inverse[0] = 1.0
    for order in range(1, column.size):
        nearest = inverse[max(0, order - bands.size + 1) : order][::-1]
        inverse[order] = -np.dot(bands[1 : nearest.size + 1], nearest)
    cost = math.sqrt(wanted.max_participations) * float(np.linalg.norm(column))
    assert blt.sensitivity(column, wanted) == pytest.approx(cost)
    assert cost * blt.worst_prefix_stddev(inverse) == pytest.approx(TABLE[shape][2], rel=6e-4)


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((500, 100, 5), [1, -0.495487, -0.145349, -0.056558, -0.032262]),
        ((2000, 400, 4), [1, -0.453843, -0.186082, -0.079130, -0.036286]),
    ],
)
def test_the_inverse_starts_as_in_the_table(shape, first):
    inverse = blt.inverse_coefficients(blt.SHIPPED[participation(*shape)], shape[0])
    np.testing.assert_allclose(inverse[:5], first, atol=6e-7)


@pytest.mark.parametrize("matrix", blt.SHIPPED.values(), ids=[str(shape) for shape in TABLE])
def test_streaming_multiplies_by_the_inverse(matrix):
    rounds = 200
    z = np.random.default_rng(5).standard_normal((rounds, 3))
    streamed = np.array(list(stream(matrix, z)))
    column = blt.coefficients(matrix, rounds)
    np.testing.assert_allclose(lower_triangular(column) @ streamed, z, atol=1e-10)
    inverse = blt.inverse_coefficients(matrix, rounds)
    np.testing.assert_allclose(lower_triangular(inverse) @ z, streamed, atol=1e-10)
    # What the grid's head-room counts on: a row of C^-1 doubles a draw at most.
    assert np.abs(blt.inverse_coefficients(matrix, 5000)).sum() <= 2


def test_the_columns_are_what_they_are_defined_to_be():
    matrix = Blt((1.0, 0.5), (0.2, 0.3))
    np.testing.assert_allclose(blt.coefficients(matrix, 5), [1, 0.5, 0.35, 0.275, 0.2375])
    assert blt.coefficients(matrix, 1).tolist() == [1]
    assert blt.inverse_coefficients(matrix, 1).tolist() == [1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=9),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_the_formula_is_the_worst_of_all_ways_to_take_part(falls, separation, most):
    column = np.cumprod([1.0, *falls])
    rounds = column.size
    matrix = lower_triangular(column)
    worst = 0.0
    for number in range(1, most + 1):
        for taken in itertools.combinations(range(rounds), number):
            if all(later - earlier >= separation for earlier, later in itertools.pairwise(taken)):
                worst = max(worst, float(np.linalg.norm(matrix[:, taken].sum(axis=1))))
    found = blt.sensitivity(column, participation(rounds, separation, most))
    assert worst - 1e-12 <= found <= worst + 2e-9


def test_coming_back_too_early_would_cost_much_more():
    column = blt.coefficients(blt.SHIPPED[participation(500, 100, 5)], 500)
    assert blt.sensitivity(column, participation(500, 50, 10)) == pytest.approx(7.44, abs=5e-3)


@pytest.mark.parametrize("column", [[1.0, 0.5, 0.6], [1.0, 0.0, -0.1]])
def test_the_formula_is_refused_where_it_does_not_hold(column):
    with pytest.raises(ValueError, match="nowhere rises"):
        blt.sensitivity(np.array(column), participation(3, 1, 1))
    with pytest.raises(ValueError, match="3 rounds does not describe a run of 4"):
        blt.sensitivity(np.array(column), participation(4, 1, 1))


@pytest.mark.parametrize("shape", [(60, 10, 3), (1, 1, 1), (500, 99, 5), (100, 1, 100), (600, 140, 2), (20, 50, 4)])
def test_an_unlisted_run_gets_the_shipped_matrix_with_the_least_error_at_its_own_price(shape):
    wanted = participation(*shape)
    chosen = blt.choose(wanted)
    errors = {}
    for made_for, matrix in blt.SHIPPED.items():
        rows = lower_triangular(blt.coefficients(matrix, wanted.num_rounds))
        often = min(wanted.max_participations, -(-wanted.num_rounds // wanted.separation))
        taken = [index * wanted.separation for index in range(often)]
        cost = np.linalg.norm(rows[:, taken].sum(axis=1))
        prefixes = np.linalg.inv(rows).cumsum(axis=0)
        errors[made_for] = (cost * np.linalg.norm(prefixes, axis=1).max(), cost)
    best = min(errors, key=lambda made_for: errors[made_for][0])
    assert chosen.made_for == best
    assert chosen.worst_error == pytest.approx(errors[best][0], rel=1e-6)
    assert chosen.sensitivity == pytest.approx(errors[best][1], rel=1e-6)


def test_more_participations_than_there_is_room_for_cost_nothing():
    assert blt.choose(participation(500, 100, 500)) == blt.choose(participation(500, 100, 5))


def test_any_tiles_and_a_stored_state_give_the_same_bits():
    matrix = blt.SHIPPED[participation(500, 100, 5)]
    z = [noise.gaussian(bytes([number] * 32), first=0, count=1000) for number in range(20)]
    whole = b"".join(one.tobytes() for one in stream(matrix, np.array(z)))
    tiles = [slice(0, 1), slice(1, 600), slice(600, 1000)]
    stored = np.stack(blt.init(matrix, 1000), axis=-1)
    parts = b""
    for number in range(20):
        for tile in tiles:
            normals = noise.gaussian(bytes([number] * 32), first=tile.start, count=tile.stop - tile.start)
            buffers = tuple(np.ascontiguousarray(stored[tile, slot]) for slot in range(3))
            drawn, kept = blt.step(matrix, normals, buffers=buffers)
            stored[tile] = np.stack(kept, axis=-1)
            parts += drawn.tobytes()
    assert parts == whole


def test_a_step_leaves_what_it_was_given_alone():
    matrix = blt.SHIPPED[participation(200, 20, 10)]
    z, buffers = np.arange(5.0), (np.ones(5), np.full(5, 2.0))
    blt.step(matrix, z, buffers=buffers)
    assert z.tolist() == [0, 1, 2, 3, 4]
    assert [one.tolist() for one in buffers] == [[1] * 5, [2] * 5]


def test_a_hundred_rounds_carry_a_sixth_of_independent_noise():
    matrix = blt.SHIPPED[participation(500, 100, 5)]
    total = np.zeros(20_000)
    rows = np.stack([noise.gaussian(bytes([number] * 32), first=0, count=total.size) for number in range(100)])
    for drawn in stream(matrix, rows):
        total += drawn
    expected = float(np.linalg.norm(np.cumsum(blt.inverse_coefficients(matrix, 100))))
    # Independent noise would have 10; 1.586 was once seen in samples.
    assert expected == pytest.approx(1.56876, abs=1e-5)
    assert expected == pytest.approx(1.586, rel=0.02)
    assert total.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * total.size))
