"""Whom a client masks with: pinned lists, authorities, peers it has met; and what its policy refuses beforehand."""

import os
from pathlib import Path
from typing import Any

import pytest

from client_sdk import (
    PeerTrust,
    PolicyError,
    PrivacyPolicy,
    RoundSpec,
    RunSpec,
    SessionRefusedError,
    UsageError,
    load_roster,
    participate,
)
from client_sdk.masking.authority import Authority
from client_sdk.masking.identity import IdentityStore
from client_sdk.testing import FakeAggregator
from fl_protocol.masking import keys
from fl_protocol.masking.certificates import certify
from tests.client_sdk.test_evil_server import MODEL, Trainer, an_evil_server, masked, take_part
from tests.support.evil_server import VICTIM, EvilServer


def roster_of(evil: EvilServer) -> dict[bytes, bytes]:
    return {puppet.client_id: keys.identity_public_key(puppet.identity) for puppet in evil.puppets}


async def test_a_pinned_roster_lets_in_its_clients_and_nobody_else(tmp_path: Path) -> None:
    evil = an_evil_server()
    assert await take_part(evil, tmp_path / "a", trust=PeerTrust(roster=roster_of(evil))) == 1
    for change in ({evil.puppets[0].client_id: bytes(32)}, {}):
        stranger = an_evil_server()
        roster = roster_of(stranger)
        del roster[stranger.puppets[0].client_id]
        with pytest.raises(SessionRefusedError) as refused:
            await take_part(stranger, tmp_path / str(len(change)), trust=PeerTrust(roster=roster | change))
        assert (refused.value.rule, refused.value.field) == ("C2", "roster.identity_key")
        assert stranger.messages_sent == {"seat": 1}


async def test_so_many_known_peers_are_enough_where_the_run_does_not_pin_them(tmp_path: Path) -> None:
    evil = an_evil_server()
    two = dict(list(roster_of(evil).items())[:2])
    assert await take_part(evil, tmp_path / "a", trust=PeerTrust(roster=two, min_known_peers=2)) == 1
    few = an_evil_server()
    two = dict(list(roster_of(few).items())[:2])
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(few, tmp_path / "b", trust=PeerTrust(roster=two, min_known_peers=3))
    assert (refused.value.rule, refused.value.value, refused.value.bound) == ("C2", 2, 3)
    pinned = an_evil_server(spec=masked(secure_aggregation={"identity_trust": "pinned"}))
    partly = dict(list(roster_of(pinned).items())[:2])
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(pinned, tmp_path / "c", trust=PeerTrust(roster=partly, min_known_peers=2))
    assert refused.value.field == "roster.identity_key"


@pytest.mark.parametrize(("trust", "option"), [("pinned", "--roster"), ("ca", "--authority")])
async def test_what_a_run_declares_and_the_client_was_not_given_is_asked_for(
    trust: str, option: str, tmp_path: Path
) -> None:
    evil, trainer = an_evil_server(spec=masked(secure_aggregation={"identity_trust": trust})), Trainer()
    with pytest.raises(UsageError, match=option):
        await take_part(evil, tmp_path, trainer=trainer)
    assert trainer.num_trained == 0
    assert evil.messages_sent == {}


async def test_a_peer_that_was_met_with_another_key_is_refused(tmp_path: Path) -> None:
    spec = masked(secure_aggregation={"identity_trust": "tofu"})
    evil = an_evil_server(spec=spec)
    assert await take_part(evil, tmp_path) == 1
    another = an_evil_server(spec=spec)
    another.signing_key = evil.signing_key
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(another, tmp_path)
    assert (refused.value.rule, refused.value.field) == ("C2", "roster.identity_key")
    assert another.messages_sent == {"seat": 1}


async def test_an_authority_vouches_for_all_members_of_a_session(tmp_path: Path) -> None:
    spec = masked(secure_aggregation={"identity_trust": "ca"})
    authority = Authority.load_or_create(tmp_path / "authority")
    assert Authority.load_or_create(tmp_path / "authority") == authority
    trust = PeerTrust(authority=authority.public_key)
    evil = an_evil_server(spec=spec)
    with pytest.raises(UsageError, match="no certificate"):
        await take_part(evil, tmp_path / "a", trust=trust)
    store = IdentityStore(tmp_path / "a")
    identity = store.load()
    assert identity is not None
    store.add_certificate(authority.certify(VICTIM, identity.public_key))
    certificates = {
        puppet.client_id: certify(
            authority.private_key, client_id=puppet.client_id, identity_key=keys.identity_public_key(puppet.identity)
        )
        for puppet in evil.puppets
    }
    evil.certificates = certificates
    assert await take_part(evil, tmp_path / "a", trust=trust) == 1
    forged = an_evil_server(spec=spec)
    forged.signing_key = evil.signing_key
    forged.certificates = certificates
    with pytest.raises(SessionRefusedError) as refused:
        await take_part(forged, tmp_path / "a", trust=trust)
    assert (refused.value.rule, refused.value.field) == ("C2", "roster.identity_key")


def test_a_roster_file_has_a_client_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "roster"
    key = keys.identity_public_key(os.urandom(32)).hex()
    path.write_text(f"# hospitals\n\nclient_{'0' * 32} {key}  # north\n")
    assert load_roster(path) == {bytes(16): bytes.fromhex(key)}
    entry = f"client_{'0' * 32} {key}\n"
    for text, line in ((entry[:-2], 1), (f"\nclient_0 {key}", 2), (entry * 2, 2)):
        path.write_text(text)
        with pytest.raises(UsageError, match=f"line {line}"):
            load_roster(path)
    with pytest.raises(UsageError, match="no roster"):
        load_roster(tmp_path / "none")


def test_an_identity_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    store = IdentityStore(tmp_path / "state")
    made = store.create(VICTIM)
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.load() == made
    assert made.private_key.hex() not in repr(made)
    with pytest.raises(UsageError, match="already"):
        store.create(VICTIM)
    with pytest.raises(UsageError, match="not of client_"):
        store.load_or_create("client_" + "0" * 32)
    store.path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        store.load()
    store.path.chmod(0o600)
    store.path.write_text("{}")
    with pytest.raises(UsageError, match="damaged"):
        store.load()
    assert [path.name for path in store.path.parent.iterdir()] == ["identity.json"]
    with pytest.raises(UsageError, match="client_id"):
        IdentityStore(tmp_path / "other").load_or_create(None)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, object, object]] = [
    ({"min_members": 5}, {"min_session_members": 6}, "min_session_members", 5, 6),
    ({}, {"allowed_identity_trust": ("pinned", "ca")}, "allowed_identity_trust", "server", ("pinned", "ca")),
    ({"target_members": 129}, {"require_complete_graph": True}, "require_complete_graph", 129, 128),
]


@pytest.mark.parametrize(("secure", "policy", "field", "value", "bound"), REFUSED, ids=[case[2] for case in REFUSED])
async def test_a_policy_refuses_a_masked_run_before_anything_is_trained(
    secure: dict[str, Any], policy: dict[str, Any], field: str, value: object, bound: object, tmp_path: Path
) -> None:
    spec = masked(secure_aggregation=secure, round={"quorum": 5, "cohort_size": 200, "min_updates": 5})
    evil, trainer = an_evil_server(spec=spec), Trainer()
    demanded = PrivacyPolicy(allowed_kinds=("none",), secure_aggregation="required", **policy)
    async with evil.victim() as client:
        with pytest.raises(PolicyError) as refused:
            await participate(client, evil.run.run_id, trainer, state_dir=tmp_path, client_id=VICTIM, policy=demanded)
    assert (refused.value.field, refused.value.value, refused.value.bound) == (field, value, bound)
    assert f"policy.{field}" in str(refused.value)
    assert trainer.num_trained == 0
    assert evil.messages_sent == {}
    assert not (tmp_path / "identity.json").exists()


async def test_a_policy_that_requires_masks_refuses_a_run_without(tmp_path: Path) -> None:
    fake, trainer = FakeAggregator(), Trainer()
    run = await fake.start_run(RunSpec(num_rounds=1, round=RoundSpec(quorum=1)), MODEL)
    async with fake.enrolled("a") as client:
        with pytest.raises(PolicyError, match="would see this client's update") as refused:
            await participate(
                client,
                run.run_id,
                trainer,
                state_dir=tmp_path,
                policy=PrivacyPolicy(allowed_kinds=("none",), secure_aggregation="required"),
            )
    assert (refused.value.field, refused.value.value) == ("secure_aggregation", "none")
    assert trainer.num_trained == 0
