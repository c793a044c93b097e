"""What everybody in a session knows: its identity, its members, and who is whose neighbour."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

from fl_protocol.masking.graph import Graph, Neighbours, graph_of, neighbours
from fl_protocol.masking.messages import Kind, Roster, session_id


@dataclass(frozen=True, slots=True)
class Cohort:
    """A session's public side, computed of a roster and a round's context by server and clients alike."""

    roster: Roster
    session_id: bytes
    graph: Graph
    neighbours: Neighbours = field(repr=False)

    @classmethod
    def of(cls, roster: Roster, *, context: bytes) -> Self:
        """Computes a session's identity and graph; raises GraphError for fewer than 3 members.

        The roster's threshold is not compared with the graph's: that is for a client to refuse (rule C2).
        """
        identity, graph = session_id(roster, context=context), graph_of(len(roster.members))
        return cls(roster, identity, graph, neighbours(identity, graph.num_members, graph.degree))

    def expected_kinds(self, member: int, *, shared: Collection[int], survivors: Collection[int]) -> dict[int, Kind]:
        """Gives which share a member answers for each neighbour in U2: of a survivor's seed or of a dropout's key."""
        return {
            peer: Kind.SEED if peer in survivors else Kind.KEY for peer in self.neighbours[member] if peer in shared
        }


def is_mask_subtracted(member: int, peer: int) -> bool:
    """Tells whether a member subtracts the mask that it shares with a peer; of two, the one behind the other does."""
    return member > peer
