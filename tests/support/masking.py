"""A whole session in one process: honest members, and a server that keeps to the protocol or is scripted not to."""

import hashlib
import random
from dataclasses import dataclass, field

import numpy as np

from fl_protocol.masking import keys, messages, prg, unmasking
from fl_protocol.masking.cohort import Cohort
from fl_protocol.masking.graph import can_proceed, graph_of
from fl_protocol.masking.messages import Roster
from fl_protocol.masking.participant import ADVERTISE_ENTROPY_BYTES, Participant
from fl_protocol.masking.ring import Ring, pack, signed, to_words, unpack
from fl_protocol.masking.terms import Terms

CONTEXT = hashlib.sha256(b"ctx").digest()


def client_id(number):
    return number.to_bytes(16, "big")


def identity(number):
    """Gives a client's private and public identity key."""
    private = hashlib.sha256(b"identity %d" % number).digest()
    return private, keys.identity_public_key(private)


def signer(number):
    private, _ = identity(number)
    return lambda message: keys.sign(private, message)


def enrol(number, entropy, **terms):
    terms = Terms(**{"context": CONTEXT, "min_members": 3, "max_members": 1000} | terms)
    _, public = identity(number)
    return Participant.enrol(
        terms,
        client_id=client_id(number),
        identity_key=public,
        signer=signer(number),
        entropy=entropy(ADVERTISE_ENTROPY_BYTES),
    )


@dataclass
class Server:
    """Keeps to the protocol, in memory."""

    ring: Ring
    min_members: int = 3
    cohort: Cohort | None = None
    uploads: dict[int, tuple] = field(default_factory=dict)
    inputs: dict[int, bytes] = field(default_factory=dict)
    signatures: dict[int, bytes] = field(default_factory=dict)
    answers: dict[int, tuple] = field(default_factory=dict)

    def freeze(self, advertises, context=CONTEXT):
        count = len(advertises)
        members = tuple(messages.parse_advertise(one.render()) for one in advertises)
        roster = Roster(graph_of(count).threshold, members)
        self.cohort = Cohort.of(roster, context=context)
        return roster.render()

    @property
    def count(self):
        return self.cohort.graph.num_members

    def take_shares(self, member, body):
        records = messages.parse_share_records(body, num_members=self.count)
        unmasking.check_dealing(records, member=member, cohort=self.cohort)
        self.uploads[member] = records

    def can_proceed(self, members, alive):
        cohort = self.cohort
        return can_proceed(
            members, alive, graph=cohort.graph, neighbours=cohort.neighbours, min_members=self.min_members
        )

    def inbox(self, member):
        return unmasking.inbox(self.uploads, member=member)

    @property
    def survivors(self):
        return frozenset(self.inputs)

    @property
    def bitmap(self):
        return messages.render_bitmap(self.survivors, num_members=self.count)

    def consistency(self):
        return messages.render_consistency(self.signatures)

    def take_answer(self, member, body):
        answer = messages.parse_unmask(body, num_members=self.count)
        unmasking.check_answer(
            answer, member=member, cohort=self.cohort, shared=self.uploads.keys(), survivors=self.survivors
        )
        self.answers[member] = answer

    def collected(self):
        return unmasking.collect(
            self.answers,
            digests=unmasking.share_digests(self.uploads),
            cohort=self.cohort,
            shared=self.uploads.keys(),
            survivors=self.survivors,
        )

    def sum(self, window=1 << 16):
        """Gives the unmasked sum, window by window, each from the members' packed bytes."""
        masks = unmasking.masks_of_sum(self.collected(), cohort=self.cohort)
        bits, width = self.ring.bits, self.ring.element_bytes
        size = len(next(iter(self.inputs.values()))) // width
        parts = []
        for first in range(0, size, window):
            total = np.zeros(min(window, size - first), dtype=self.ring.dtype)
            for body in self.inputs.values():
                total += unpack(body[first * width : (first + window) * width], bits)
            prg.remove_masks(total, masks, first=first)
            parts.append(signed(total, bits))
        return np.concatenate(parts)


def masked(member, vector, ring):
    words = to_words(vector, ring)
    prg.apply_masks(words, member.masks())
    return pack(words, ring.bits)


def run(vectors, ring, *, silent=None, entropy=None, **terms):
    """Runs a session; `silent` maps a phase to the members that vanish in it. Gives server and members by index."""
    silent, entropy = silent or {}, entropy or random.Random(0).randbytes
    members = [enrol(number, entropy, **terms) for number in range(len(vectors))]
    server = Server(ring)
    roster = server.freeze([member.advertise for member in members])
    present = set(range(len(members)))
    for index in sorted(present):
        members[index].accept_roster(roster)
    present -= set(silent.get("shares", ()))
    for index in sorted(present):
        server.take_shares(index, members[index].deal(entropy(members[index].dealing_entropy_bytes)))
    for index in sorted(present):
        members[index].open_inbox(server.inbox(index))
    present -= set(silent.get("input", ()))
    for index in sorted(present):
        server.inputs[index] = masked(members[index], vectors[index], ring)
    bitmap = server.bitmap
    present -= set(silent.get("consistency", ()))
    for index in sorted(present):
        server.signatures[index] = members[index].sign_survivors(bitmap, signer=signer(index))
    present -= set(silent.get("unmask", ()))
    for index in sorted(present):
        members[index].check_consistency(server.consistency())
        server.take_answer(index, members[index].unmask(bitmap))
    return server, members
