"""The SDK against a server that deviates as it is told: which rule refuses it, and what was not sent (S12-S26, X)."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from client_sdk import (
    FedQuorumError,
    ManifestError,
    ManifestForkError,
    PeerTrust,
    Progress,
    RunSpec,
    SessionRefusedError,
    TrainedDelta,
    TrainingTask,
    TranscriptError,
    UntrustedAnswerError,
    participate,
)
from client_sdk.session.progress import SessionFailed, TaskGivenUp, UpdateCounted
from fl_protocol.masked_vectors import ring_of
from fl_protocol.masking import keys
from fl_protocol.masking.messages import Roster, advertise_message
from fl_protocol.masking.ring import signed, to_words
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunState
from fl_protocol.sessions import SessionState
from fl_protocol.specs.protection import NoSecureAggregation
from tests.support.evil_server import VICTIM, EvilServer

MODEL = {"w": np.zeros(3, np.float32), "b": np.zeros((2, 1), np.float32)}
LOW_ORDER = bytes(32)
ZERO_DIGEST = "sha256:" + "0" * 64

Hooks = dict[str, Callable[[Any], Any]]


def masked(**changes: Any) -> RunSpec:
    secure = {"kind": "pairwise", "min_members": 5, "clipping_norm": 1.0} | changes.pop("secure_aggregation", {})
    given = {
        "num_rounds": 1,
        "round": {"quorum": 5, "cohort_size": 10, "min_updates": 5},
        "strategy": {"kind": "mean", "weighting": "uniform"},
        "secure_aggregation": secure,
    }
    return RunSpec.model_validate(given | changes)


class Trainer:
    """Counts how often something was trained."""

    def __init__(self) -> None:
        self.num_trained = 0

    def __call__(self, task: TrainingTask) -> TrainedDelta:
        self.num_trained += 1
        return TrainedDelta(
            tensors={"w": np.full(3, 0.25, np.float32), "b": np.full((2, 1), -0.5, np.float32)}, num_examples=7
        )


def an_evil_server(hooks: Hooks | None = None, *, spec: RunSpec | None = None, num_members: int = 5) -> EvilServer:
    evil = EvilServer(spec or masked(), MODEL, num_members=num_members)
    evil.hooks.update(hooks or {})
    return evil


async def take_part(
    evil: EvilServer,
    folder: Path,
    *,
    trainer: Trainer | None = None,
    trust: PeerTrust | None = None,
    told: list[Progress] | None = None,
) -> int:
    events = [] if told is None else told
    async with evil.victim() as client:
        done = await participate(
            client,
            evil.run.run_id,
            trainer or Trainer(),
            state_dir=folder,
            client_id=VICTIM,
            peer_trust=trust,
            on_event=events.append,
        )
    return done.num_updates


def contents(folder: Path) -> dict[str, bytes]:
    """Reads every file in a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_with_an_honest_server_everything_is_sent_once_and_the_sum_is_right(tmp_path: Path) -> None:
    evil, told = an_evil_server(), list[Progress]()
    assert await take_part(evil, tmp_path, told=told) == 1
    assert evil.messages_sent == {"seat": 1, "shares": 1, "inputs": 1, "consistency": 1, "unmask": 1}
    assert evil.session.total is not None
    ring = ring_of(evil.run.spec)
    own = np.array([0.25, 0.25, 0.25, -0.5, -0.5])
    puppets = sum(puppet.part.index + 1 for puppet in evil.puppets)
    np.testing.assert_allclose((evil.session.total - puppets) * ring.step, own, atol=ring.step)
    (counted,) = (event for event in told if isinstance(event, UpdateCounted))
    assert counted.num_survivors == 5


async def test_who_vanished_before_the_input_costs_the_session_nothing(tmp_path: Path) -> None:
    evil = an_evil_server(num_members=7)
    evil.vanish_before_input = frozenset({0})
    assert await take_part(evil, tmp_path) == 1
    assert evil.session.total is not None
    puppets = sum(puppet.part.index + 1 for puppet in evil.puppets if puppet.part.index != 0)
    ring = ring_of(evil.run.spec)
    np.testing.assert_allclose((evil.session.total - puppets)[:3] * ring.step, 0.25, atol=ring.step)


def member(roster: Roster, index: int, **changes: Any) -> Roster:
    members = list(roster.members)
    members[index] = replace(members[index], **changes)
    return Roster(roster.threshold, tuple(members))


def resigned(evil: EvilServer, roster: Roster, index: int, *, context: bytes | None = None, **changes: Any) -> Roster:
    """Changes a puppet's record, which it signs again."""
    changed = replace(roster.members[index], **changes)
    puppet = next(one for one in evil.puppets if one.client_id == roster.members[index].client_id)
    signature = puppet.sign(advertise_message(changed, context=context or evil.context))
    return member(roster, index, **changes, signature=signature)


ROSTERS: dict[str, tuple[Callable[[EvilServer, Roster], Roster], str, str]] = {
    "a key that its member did not sign": (
        lambda evil, roster: member(roster, 0, share_key=keys.agreement_public_key(os.urandom(32))),
        "C2",
        "roster.signature",
    ),
    "another key of this client's own": (
        lambda evil, roster: member(roster, 2, mask_key=keys.agreement_public_key(os.urandom(32))),
        "C2",
        "roster",
    ),
    "without this client": (
        lambda evil, roster: Roster(3, (*roster.members[:2], *roster.members[3:], roster.members[0])),
        "C2",
        "roster",
    ),
    "one identity twice": (
        lambda evil, roster: member(roster, 0, identity_key=roster.members[1].identity_key),
        "C2",
        "roster.identity_key",
    ),
    "one client twice": (
        lambda evil, roster: member(roster, 0, client_id=roster.members[1].client_id),
        "C2",
        "roster.client_id",
    ),
    "one key for two members": (
        lambda evil, roster: resigned(evil, roster, 0, mask_key=roster.members[1].mask_key),
        "C2",
        "roster.share_key or mask_key",
    ),
    "too few members": (lambda evil, roster: Roster(3, roster.members[1:4]), "C2", "roster.n"),
    "a member of another model": (
        lambda evil, roster: resigned(evil, roster, 4, context=keys.context(b"another manifest")),
        "C2",
        "roster.signature",
    ),
    "another threshold": (lambda evil, roster: replace(roster, threshold=2), "C2", "roster.t"),
    "a point of low order": (
        lambda evil, roster: resigned(evil, roster, 0, mask_key=LOW_ORDER),
        "C3",
        "roster.mask_key.0",
    ),
}


@pytest.mark.parametrize("what", ROSTERS)
async def test_a_roster_that_breaks_a_rule_is_left_before_any_share_is_dealt(what: str, tmp_path: Path) -> None:
    """S12, S13, S14, S15, S23, S24."""
    change, rule, field = ROSTERS[what]
    evil = an_evil_server()
    evil.hooks["roster"] = lambda roster: change(evil, roster)
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(evil, tmp_path)
    assert (refused.value.rule, refused.value.field) == (rule, field)
    assert evil.messages_sent == {"seat": 1}


async def test_bytes_that_are_no_roster_are_left_too(tmp_path: Path) -> None:
    evil = an_evil_server()
    evil.hooks["roster"] = lambda roster: replace(roster, threshold=9)
    with pytest.raises(UntrustedAnswerError, match="roster"):
        await take_part(evil, tmp_path)
    assert evil.messages_sent == {"seat": 1}


async def test_members_who_were_shown_another_roster_share_nothing_that_opens(tmp_path: Path) -> None:
    """S16: their session is another one, so their shares do not open, and a fresh session is no better: four in all."""
    evil, told = an_evil_server(), list[Progress]()
    evil.hooks["puppets_see"] = lambda roster: Roster(roster.threshold, tuple(reversed(roster.members)))
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(evil, tmp_path, told=told)
    assert refused.value.rule == "C4"
    assert set(evil.messages_sent) == {"seat", "shares"}
    assert evil.messages_sent["shares"] == len(set(evil.bodies("PUT", "/seat$"))) == 4
    assert sum(isinstance(event, SessionFailed) for event in told) == 3


INBOXES: dict[str, Callable[[EvilServer, Any], Any]] = {
    "a changed ciphertext": lambda evil, records: (
        replace(records[0], ciphertext=bytes([records[0].ciphertext[0] ^ 1]) + records[0].ciphertext[1:]),
        *records[1:],
    ),
    "its own record sent back": lambda evil, records: tuple(
        next(own for own in evil.session.dealt[evil.place] if own.peer == record.peer) for record in records
    ),
    "another digest": lambda evil, records: (replace(records[0], seed_digest=bytes(32)), *records[1:]),
    "two senders exchanged": lambda evil, records: (
        replace(records[0], peer=records[0].peer),
        replace(records[2], peer=records[1].peer),
        replace(records[1], peer=records[2].peer),
        *records[3:],
    ),
    "too few": lambda evil, records: records[:2],
}


@pytest.mark.parametrize("what", INBOXES)
async def test_shares_that_are_not_the_dealers_are_left_before_the_input(what: str, tmp_path: Path) -> None:
    """S17."""
    evil = an_evil_server()
    evil.hooks["inbox"] = lambda records: INBOXES[what](evil, records)
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(evil, tmp_path)
    assert refused.value.rule == "C4"
    assert set(evil.messages_sent) == {"seat", "shares"}


@pytest.mark.parametrize(
    ("change", "num_members"),
    [(lambda shown: shown - {2}, 5), (lambda shown: shown - {0, 1}, 5), (lambda shown: set(), 5)],
    ids=["its own missing", "too few", "nobody"],
)
async def test_survivors_that_cannot_be_are_not_signed(
    change: Callable[[Any], Any], num_members: int, tmp_path: Path
) -> None:
    """S21."""
    evil = an_evil_server({"survivors": change}, num_members=num_members)
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(evil, tmp_path)
    assert (refused.value.rule, refused.value.field) == ("C5", "survivors")
    assert set(evil.messages_sent) == {"seat", "shares", "inputs"}


async def test_a_survivor_who_never_dealt_is_not_signed(tmp_path: Path) -> None:
    evil = an_evil_server({"inbox": lambda records: records[1:]})
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(evil, tmp_path)
    assert (refused.value.rule, refused.value.value) == ("C5", 0)
    assert set(evil.messages_sent) == {"seat", "shares", "inputs"}


SIGNATURES: Hooks = {
    "too few": lambda signatures: dict(list(signatures.items())[:3]),
    "none": lambda signatures: {},
    "a forged one": lambda signatures: signatures | {0: bytes(64)},
    "one member's for another": lambda signatures: signatures | {0: signatures[1]},
}


@pytest.mark.parametrize("what", SIGNATURES)
async def test_without_a_quorum_of_true_signatures_no_share_is_given(what: str, tmp_path: Path) -> None:
    """S20."""
    evil = an_evil_server({"signatures": SIGNATURES[what]})
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(evil, tmp_path)
    assert (refused.value.rule, refused.value.field) == ("C6", "consistency")
    assert set(evil.messages_sent) == {"seat", "shares", "inputs", "consistency"}
    assert not [name for name in contents(tmp_path) if "answered" in name]


async def test_signatures_of_another_set_than_this_client_signed_are_refused(tmp_path: Path) -> None:
    """S19: the others signed that everybody stayed, this one that member 0 did not; it answers for no other set."""
    evil = an_evil_server({"survivors": lambda shown: shown - {0}}, num_members=7)
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(evil, tmp_path)
    assert refused.value.rule == "C6"
    assert "unmask" not in evil.messages_sent


def back_to(evil: EvilServer, state: SessionState) -> Callable[[Any], Any]:
    """Shows the session in an earlier state once it is done."""
    return lambda session: session.model_copy(update={"state": state}) if evil.session.total is not None else session


def without_one_once_done(evil: EvilServer) -> Callable[[Any], Any]:
    return lambda shown: shown if evil.session.total is None else shown - {0}


@pytest.mark.parametrize("state", [SessionState.CONSISTENCY, SessionState.INPUT, SessionState.SHARES])
async def test_a_second_answer_for_another_set_is_not_given(state: SessionState, tmp_path: Path) -> None:
    """S18."""
    evil = an_evil_server()
    evil.hooks |= {"session": back_to(evil, state), "survivors": without_one_once_done(evil)}
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(evil, tmp_path)
    assert (refused.value.rule, refused.value.field) == ("C7", "state")
    assert evil.messages_sent == {"seat": 1, "shares": 1, "inputs": 1, "consistency": 1, "unmask": 1}


async def test_a_round_whose_session_failed_after_the_answer_is_spent(tmp_path: Path) -> None:
    """C8: neither in a fresh session, nor after a restart, nor in the round's next attempt."""
    evil, told, trainer = an_evil_server(), list[Progress](), Trainer()

    def aborted(session: Any) -> Any:
        if evil.session.total is None:
            return session
        evil.session.state = SessionState.ABORTED
        return session.model_copy(update={"state": SessionState.ABORTED, "reason": "a share was bad"})

    evil.hooks |= {"session": aborted}
    assert await take_part(evil, tmp_path, told=told, trainer=trainer) == 0
    assert evil.bodies("DELETE", "/tasks/") == [b""]
    assert evil.messages_sent == {"seat": 1, "shares": 1, "inputs": 1, "consistency": 1, "unmask": 1}
    # The next attempt at the round, after a restart: nothing is trained, let alone sent.
    fake = evil.runs[evil.run.run_id]
    fake.rounds[-1] = fake.rounds[-1].model_copy(update={"attempt": 2, "state": RoundState.COLLECTING})
    fake.change(state=RunState.RUNNING)
    evil.intercept = stopping_at_a_refusal(evil)
    evil.sequence, evil.previous = 2, None
    evil.manifests.clear()
    assert await take_part(evil, tmp_path, told=told, trainer=trainer) == 0
    assert trainer.num_trained == 1
    assert evil.messages_sent["seat"] == 1
    assert "helped to unmask" in [event.reason for event in told if isinstance(event, TaskGivenUp)][-1]


def stopping_at_a_refusal(evil: EvilServer) -> Callable[[httpx.Request], None]:
    """Ends the run as soon as a task is handed back."""

    def intercept(request: httpx.Request) -> None:
        if request.method == "DELETE":
            evil.runs[evil.run.run_id].change(state=RunState.STOPPED)

    return intercept


async def test_a_restarted_client_is_a_dropout_and_sends_nothing_with_old_secrets(tmp_path: Path) -> None:
    """S26, C9: what was drawn for the first session is nowhere on the disk, and a fresh one is waited for."""
    evil = an_evil_server()

    class Crash(BaseException):
        pass

    def crash(shown: Any) -> Any:
        raise Crash

    evil.hooks["survivors"] = crash
    with pytest.raises(Crash):
        await take_part(evil, tmp_path)
    first = evil.session
    kept = contents(tmp_path)
    assert {Path(name).name for name in kept} == {"identity.json", "server.json", "0000000001.json"}
    assert not [name for name in kept if "answered" in name]
    evil.hooks.clear()
    assert await take_part(evil, tmp_path) == 1
    assert len(evil.sessions) == 2
    seats = evil.bodies("PUT", "/seat$")
    assert len({body[48:112] for body in seats}) == 2, "fresh keys"
    assert len(evil.bodies("PUT", f"{first.session_id}/unmask")) == 0
    assert len(evil.bodies("PUT", f"{evil.session.session_id}/unmask")) == 1


MANIFESTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another model": (
        lambda manifest: manifest.model_copy(
            update={"model": manifest.model.model_copy(update={"digest": "sha256:" + "0" * 64})}
        ),
        "model.digest",
    ),
    "another run's specification": (
        lambda manifest: manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"name": "other"})}),
        "spec.name",
    ),
    "another step": (
        lambda manifest: manifest.model_copy(
            update={"secure_aggregation": manifest.secure_aggregation.model_copy(update={"step": 1e-9})}
        ),
        "secure_aggregation.step",
    ),
    "fewer members": (
        lambda manifest: manifest.model_copy(
            update={"secure_aggregation": manifest.secure_aggregation.model_copy(update={"min_members": 3})}
        ),
        "secure_aggregation.min_members",
    ),
    "another specification": (
        lambda manifest: manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"num_rounds": 2})}),
        "spec.num_rounds",
    ),
    "it is over": (
        lambda manifest: manifest.model_copy(update={"not_after": manifest.not_after.replace(year=2020)}),
        "not_after",
    ),
    "another round": (lambda manifest: manifest.model_copy(update={"round": 2}), "round"),
    "another run": (lambda manifest: manifest.model_copy(update={"run_id": "run_" + "0" * 32}), "run_id"),
}


@pytest.mark.parametrize("what", MANIFESTS)
async def test_a_manifest_that_is_not_the_tasks_is_refused_before_training(what: str, tmp_path: Path) -> None:
    """S25, C1."""
    change, field = MANIFESTS[what]
    evil, trainer = an_evil_server({"manifest": change}), Trainer()
    with pytest.raises(ManifestError) as refused:
        await take_part(evil, tmp_path, trainer=trainer)
    assert refused.value.field == field
    assert trainer.num_trained == 0
    assert evil.messages_sent == {}


async def test_a_manifest_of_another_digest_than_the_tasks_is_refused_before_training(tmp_path: Path) -> None:
    def another(task: Any) -> Any:
        return task.model_copy(update={"manifest": task.manifest.model_copy(update={"digest": ZERO_DIGEST})})

    evil, trainer = an_evil_server({"task": another}), Trainer()
    with pytest.raises(ManifestError) as refused:
        await take_part(evil, tmp_path, trainer=trainer)
    assert refused.value.field == "digest"
    assert (trainer.num_trained, evil.messages_sent) == (0, {})


@pytest.mark.parametrize("field", ["manifest_digest", "round", "attempt"])
async def test_a_session_of_another_manifest_than_was_trained_for_is_left(field: str, tmp_path: Path) -> None:
    """S25, after the seat: nothing but the seat's fresh keys has left then."""
    other = {"manifest_digest": "sha256:" + "0" * 64, "round": 2, "attempt": 2}[field]
    evil = an_evil_server({"session": lambda session: session.model_copy(update={field: other})})
    with pytest.raises(UntrustedAnswerError, match="of another manifest, round or run"):
        await take_part(evil, tmp_path)
    assert evil.messages_sent.keys() <= {"seat", "shares"}


async def test_coordinates_that_are_not_the_models_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    def without(manifest: Any) -> Any:
        model = manifest.model.model_copy(update={"tensors": manifest.model.tensors[:1]})
        return manifest.model_copy(update={"model": model})

    evil, trainer = an_evil_server({"manifest": without}), Trainer()
    with pytest.raises(ManifestError) as refused:
        await take_part(evil, tmp_path, trainer=trainer)
    assert refused.value.field == "model.tensors"
    assert (trainer.num_trained, evil.messages_sent) == (0, {})


async def test_a_manifest_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    """X2: by another key than the header says, than the client was given, and than it has seen before."""
    wrong = an_evil_server({"signing_key": lambda key: os.urandom(32)})
    with pytest.raises(ManifestError) as refused:
        await take_part(wrong, tmp_path / "a")
    assert refused.value.field == "signature"
    evil, trainer = an_evil_server(), Trainer()
    pinned = PeerTrust(server_key=keys.identity_public_key(os.urandom(32)))
    with pytest.raises(ManifestError) as refused:
        await take_part(evil, tmp_path / "b", trust=pinned, trainer=trainer)
    assert refused.value.field == "key_id"
    another = an_evil_server()
    assert await take_part(another, tmp_path / "c") == 1
    with pytest.raises(ManifestError) as refused:
        await take_part(an_evil_server(), tmp_path / "c", trainer=trainer)
    assert refused.value.field == "key_id"
    assert trainer.num_trained == 0
    true = PeerTrust(server_key=keys.identity_public_key(evil.signing_key))
    assert await take_part(evil, tmp_path / "d", trust=true) == 1
    assert not (tmp_path / "d" / "server.json").exists()


async def test_another_manifest_of_the_same_number_is_a_fork_and_both_are_kept(tmp_path: Path) -> None:
    """X1."""
    evil, trainer = an_evil_server({"roster": lambda roster: replace(roster, threshold=2)}), Trainer()
    with pytest.raises(SessionRefusedError):
        await take_part(evil, tmp_path, trainer=trainer)
    first = evil.manifests.pop(1)
    evil.hooks["manifest"] = lambda manifest: manifest.model_copy(
        update={"not_after": manifest.not_after.replace(year=manifest.not_after.year + 1)}
    )
    with pytest.raises(ManifestForkError) as refused:
        await take_part(evil, tmp_path, trainer=trainer)
    assert refused.value.field == "sequence"
    assert trainer.num_trained == 1
    (kept,) = (content for name, content in contents(tmp_path).items() if name == refused.value.evidence)
    evidence = json.loads(kept)
    shown = {(entry["body"], entry["signature"]) for entry in evidence["manifests"]}
    assert len(shown) == 2
    assert first[1].hex() in {signature for _, signature in shown}


async def test_a_manifest_that_does_not_follow_on_the_last_one_is_a_fork(tmp_path: Path) -> None:
    evil, trainer = an_evil_server({"roster": lambda roster: replace(roster, threshold=2)}), Trainer()
    with pytest.raises(SessionRefusedError):
        await take_part(evil, tmp_path, trainer=trainer)
    evil.sequence, evil.previous = 2, "sha256:" + "0" * 64
    with pytest.raises(ManifestForkError) as refused:
        await take_part(evil, tmp_path, trainer=trainer)
    assert refused.value.field == "previous_digest"
    assert trainer.num_trained == 1


TRANSCRIPTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another input": (
        lambda mine: mine.model_copy(update={"input_digest": ZERO_DIGEST}),
        "members.input_digest",
    ),
    "no input": (lambda mine: mine.model_copy(update={"survived": False}), "members.survived"),
}


@pytest.mark.parametrize("what", TRANSCRIPTS)
async def test_a_transcript_without_this_clients_input_is_an_error_that_says_so(what: str, tmp_path: Path) -> None:
    """X6."""
    change, field = TRANSCRIPTS[what]

    def changed(transcript: Any) -> Any:
        members = [change(one) if one.client_id == VICTIM else one for one in transcript.members]
        return transcript.model_copy(update={"members": members})

    evil = an_evil_server({"transcript": changed})
    with pytest.raises(TranscriptError, match="left out of the sum") as refused:
        await take_part(evil, tmp_path)
    assert refused.value.field == field


async def test_a_transcript_of_another_set_than_was_signed_is_an_error(tmp_path: Path) -> None:
    def changed(transcript: Any) -> Any:
        members = [
            one.model_copy(update={"survived": False}) if index == 0 else one
            for index, one in enumerate(transcript.members)
        ]
        return transcript.model_copy(update={"members": members})

    evil = an_evil_server({"transcript": changed})
    with pytest.raises(TranscriptError) as refused:
        await take_part(evil, tmp_path)
    assert refused.value.field == "survivors"


async def test_a_masked_run_never_becomes_one_in_the_clear(tmp_path: Path) -> None:
    evil, trainer = an_evil_server({"roster": lambda roster: replace(roster, threshold=2)}), Trainer()
    with pytest.raises(SessionRefusedError):
        await take_part(evil, tmp_path, trainer=trainer)
    evil.hooks["task"] = lambda task: task.model_copy(
        update={"secure_aggregation": NoSecureAggregation(), "manifest": None}
    )
    with pytest.raises(ManifestError) as refused:
        await take_part(evil, tmp_path, trainer=trainer)
    assert refused.value.field == "secure_aggregation"
    assert trainer.num_trained == 1
    assert evil.bodies("PUT", "/update$") == []


async def test_what_is_not_finite_is_never_sent_in_a_run_without_privacy(tmp_path: Path) -> None:
    evil = an_evil_server()

    class Diverged(Trainer):
        def __call__(self, task: TrainingTask) -> TrainedDelta:
            result = super().__call__(task)
            return replace(result, tensors={**result.tensors, "w": np.full(3, np.nan, np.float32)})

    with pytest.raises(FedQuorumError, match="tensor 'w' holds NaN"):
        await take_part(evil, tmp_path, trainer=Diverged())
    assert evil.messages_sent == {}
    assert evil.bodies("DELETE", "/tasks/")


def test_the_ring_is_wide_enough_for_the_puppets() -> None:
    ring = ring_of(masked())
    assert signed(to_words(np.array([-3]), ring), ring.bits).tolist() == [-3]
