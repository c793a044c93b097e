"""The graph and its thresholds: the published numbers, symmetry, connectivity, and what a session tolerates."""

import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fl_protocol.masking.errors import GraphError
from fl_protocol.masking.graph import Graph, Threat, can_proceed, graph_of, isolated, neighbours, sparse_parameters

MALICIOUS, CURIOUS = Threat.MALICIOUS, Threat.CURIOUS
SIZES = (129, 200, 300, 500, 1000, 2000, 5000)


@pytest.mark.parametrize(
    ("num_members", "corrupt", "dropout", "threat", "expected"),
    [
        (100, 0.05, 0.05, MALICIOUS, (16, 11)),
        (1000, 0.05, 0.05, MALICIOUS, (52, 37)),
        (10_000, 0.05, 0.05, MALICIOUS, (62, 44)),
        (100, 0.3, 0.3, MALICIOUS, (92, 62)),
        (1000, 0.33, 0.33, CURIOUS, (286, 150)),
        (1000, 0.05, 0.33, CURIOUS, (72, 24)),
        (1000, 0.33, 0.05, MALICIOUS, (132, 109)),
        (10_000, 0.05, 0.05, CURIOUS, (34, 20)),
    ],
)
def test_golden_parameters(num_members, corrupt, dropout, threat, expected):
    assert sparse_parameters(num_members, corrupt=corrupt, dropout=dropout, threat=threat) == expected


@pytest.mark.parametrize(
    ("threat", "corrupt", "dropout", "expected"),
    [
        (MALICIOUS, 0.1, 0.1, [(38, 26), (56, 39), (66, 46), (82, 57), (96, 67), (106, 74), (116, 81)]),
        (CURIOUS, 0.1, 0.1, [(24, 13), (34, 19), (36, 21), (42, 24), (48, 27), (50, 28), (52, 30)]),
        (MALICIOUS, 0.05, 0.05, [(20, 14), (30, 21), (38, 27), (44, 31), (52, 37), (56, 40), (58, 41)]),
        (MALICIOUS, 0.1, 0.2, [(62, 38), (88, 55), (118, 75), (152, 97), (194, 124), (230, 147), (260, 166)]),
    ],
)
def test_tables_of_the_specification(threat, corrupt, dropout, expected):
    found = [sparse_parameters(size, corrupt=corrupt, dropout=dropout, threat=threat) for size in SIZES]
    assert found == expected


def test_where_no_sparse_graph_suffices_all_are_neighbours():
    assert sparse_parameters(130, corrupt=0.45, dropout=0.45) == (129, 87)


@pytest.mark.parametrize(
    ("num_members", "threshold", "quorum", "dropouts", "colluders"),
    [
        (3, 2, 3, 0, 1),
        (5, 3, 4, 1, 1),
        (7, 5, 5, 1, 3),
        (10, 7, 7, 2, 4),
        (20, 13, 14, 6, 6),
        (50, 33, 34, 16, 16),
        (100, 67, 67, 32, 34),
    ],
)
def test_complete_graphs_of_the_specification(num_members, threshold, quorum, dropouts, colluders):
    graph = graph_of(num_members)
    assert graph == Graph(num_members, num_members - 1, threshold, quorum)
    assert graph.is_complete
    assert (graph.tolerated_dropouts, graph.tolerated_colluders) == (dropouts, colluders)


def test_above_128_members_the_graph_is_sparse():
    assert graph_of(128).is_complete
    graph = graph_of(129)
    assert (graph.degree, graph.threshold, graph.quorum, graph.is_complete) == (38, 26, 87, False)
    assert graph_of(1000) == Graph(1000, 96, 67, 667)
    assert (graph.tolerated_dropouts, graph.tolerated_colluders) == (12, 12)


@pytest.mark.parametrize("num_members", [-1, 0, 1, 2])
def test_two_members_are_no_session(num_members):
    with pytest.raises(GraphError, match="at least 3"):
        graph_of(num_members)


@pytest.mark.parametrize("num_members", [*range(3, 129), 129, 150, 200, 500])
def test_colluders_up_to_the_bound_cannot_get_both_secrets_and_one_more_could(num_members):
    """For both secrets of one member the server needs t shares of each, of disjoint honest neighbours.

    And it needs two lists of survivors, each signed by a quorum; honest members sign one.
    """
    graph = graph_of(num_members)

    def can_get_both(colluders):
        return colluders >= graph.threshold or 2 * (graph.threshold - colluders) <= graph.degree - colluders

    bound = min(graph.threshold - 1, 2 * graph.threshold - graph.degree - 1)
    assert not any(can_get_both(colluders) for colluders in range(bound + 1))
    assert can_get_both(bound + 1)
    if graph.is_complete:
        assert graph.tolerated_colluders == bound
    third = (num_members - 1) // 3
    assert 2 * (graph.quorum - third) > num_members - third


@settings(max_examples=60, deadline=None)
@given(session_id=st.binary(min_size=32, max_size=32), num_members=st.integers(3, 200), data=st.data())
def test_neighbours_are_mutual_distinct_and_k(session_id, num_members, data):
    degrees = [*range(2, num_members - 1, 2), num_members - 1]
    degree = data.draw(st.sampled_from(degrees))
    found = neighbours(session_id, num_members, degree)
    for member, others in enumerate(found):
        assert len(set(others)) == len(others) == degree
        assert list(others) == sorted(others)
        assert member not in others
        assert all(member in found[other] for other in others)


def test_the_order_is_the_sessions_own():
    one, other = (neighbours(hashlib.sha256(name).digest(), 200, 56) for name in (b"1", b"2"))
    assert one != other
    for degree in (0, 3, 12, 14):
        with pytest.raises(GraphError, match="even, or all"):
            neighbours(bytes(32), 12, degree)


def connected(found, honest):
    places = {member: at for at, member in enumerate(honest)}
    edges = [(places[one], places[other]) for one in honest for other in found[one] if other in places]
    rows, columns = np.array(edges).T
    matrix = sparse.csr_array((np.ones(len(edges), dtype=np.int8), (rows, columns)), shape=(len(honest),) * 2)
    return sparse.csgraph.connected_components(matrix, directed=False)[0] == 1


def corrupted(num_members, draws):
    """Draws a graph and who of it is corrupt or drops out, anew each time."""
    rng = np.random.default_rng(0)
    graph, tenth = graph_of(num_members), num_members // 10
    for _ in range(draws):
        found = np.array(neighbours.__wrapped__(rng.bytes(32), num_members, graph.degree))
        order = rng.permutation(num_members)
        yield graph, found, order[:tenth], order[tenth : 2 * tenth]


@pytest.mark.parametrize("num_members", [129, 200, 500])
def test_a_tenth_corrupt_and_a_tenth_gone_leave_the_rest_connected_and_able_to_finish(num_members):
    check_corruptions(num_members, draws=60)


@pytest.mark.soak
@pytest.mark.parametrize("num_members", [129, 200])
def test_ten_thousand_corruptions(num_members):
    check_corruptions(num_members, draws=10_000)


def check_corruptions(num_members, *, draws):
    """Whoever is honest and stayed has masks that nobody else knows with the others of whom that holds."""
    for graph, found, corrupt, gone in corrupted(num_members, draws):
        is_corrupt, is_gone = np.zeros(num_members, dtype=bool), np.zeros(num_members, dtype=bool)
        is_corrupt[corrupt], is_gone[gone] = True, True
        # Both secrets of one member take 2t shares; corrupt neighbours give two each, honest ones one.
        assert (
            2 * (graph.threshold - is_corrupt[found].sum(axis=1)) > graph.degree - is_corrupt[found].sum(axis=1)
        ).all()
        assert ((~is_gone[found]).sum(axis=1) >= graph.threshold).all()
        honest = np.flatnonzero(~is_corrupt & ~is_gone).tolist()
        assert connected(found.tolist(), honest)


def test_a_session_goes_on_while_quorum_and_neighbourhoods_hold():
    graph = graph_of(10)
    everyone = neighbours(bytes(32), 10, 9)

    def proceeds(members, alive, min_members=3):
        return can_proceed(members, alive, graph=graph, neighbours=everyone, min_members=min_members)

    assert proceeds(range(10), range(8))
    # Seven reach the quorum, and each of them has six neighbours there where the threshold is seven.
    assert not proceeds(range(10), range(7))
    assert isolated(range(10), range(7), graph=graph, neighbours=everyone) == list(range(7))
    assert not proceeds(range(10), range(8), min_members=9)


def test_in_a_sparse_graph_one_lonely_member_is_named():
    graph = graph_of(200)
    found = neighbours(os.urandom(32), 200, graph.degree)
    lost = set(found[17][: graph.degree - graph.threshold + 1])
    alive = [member for member in range(200) if member not in lost]
    assert 17 in isolated(range(200), alive, graph=graph, neighbours=found)
    assert not can_proceed(range(200), alive, graph=graph, neighbours=found, min_members=3)
