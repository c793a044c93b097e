"""What a helper insists on, whatever a server asks (S32), and its log of those whom it has told of."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk import UsageError
from client_sdk.mask_helper import HelperKeys, HelperKeyStore, MaskHelper
from client_sdk.mask_helper.judgement import HelperRefusalError
from client_sdk.mask_helper.release_log import FILE_NAME, Release, ReleaseLog
from fl_protocol.masking import keys
from fl_protocol.masking.mask_requests import Contributor, mask_sum_message, parse_request
from tests.support.mask_requests import Asking, Client, words_of

CLIENTS = [Client(number) for number in range(1, 7)]
ROSTER = {client.client_id: client.public_key for client in CLIENTS}
OWN, OTHER = HelperKeys.fresh("own"), HelperKeys.fresh("other")

Make = Callable[..., MaskHelper]


@pytest.fixture
def helper_of(tmp_path: Path) -> Iterator[Make]:
    """Opens helpers in this test's folder."""
    opened: list[MaskHelper] = []

    def make(**changes: Any) -> MaskHelper:
        for one in opened:
            one.close()
        opened.append(MaskHelper(OWN, tmp_path, **{"roster": ROSTER, "min_members": 3} | changes))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def asking(**changes: Any) -> Asking:
    return Asking([OWN, OTHER], **changes)


def answer(helper: MaskHelper, asked: Asking, members: tuple[Contributor, ...]) -> bytes:
    judged = helper.judge(asked.request(members), asked.entry())
    assert judged.refused == {}
    told = helper.release(judged)
    with told.file:
        return b"".join(told.pieces())


def refusals(helper: MaskHelper, asked: Asking, members: tuple[Contributor, ...]) -> dict[str, str]:
    return helper.judge(asked.request(members), asked.entry()).refused


def test_the_answer_is_the_signed_sum_of_the_masks_and_the_same_every_time(helper_of: Make) -> None:
    asked = asking()
    members = asked.members(CLIENTS[:4])
    told = answer(helper_of(), asked, members)
    np.testing.assert_array_equal(words_of(told, asked.ring), asked.expected(CLIENTS[:4]))
    request = parse_request(asked.request(members))
    message = mask_sum_message(
        context=asked.context,
        helper=0,
        members_digest=request.members_digest,
        sum_digest=hashlib.sha256(told[64:]).digest(),
    )
    assert keys.is_signed(OWN.signing_key, message, told[:64])
    assert answer(helper_of(), asked, members) == told, "a helper that was restarted says the same again"
    assert len((helper_of().folder / FILE_NAME).read_text().splitlines()) == 1


def test_a_set_smaller_than_the_helpers_or_the_runs_minimum_is_refused(helper_of: Make) -> None:
    asked = asking()
    members = asked.members(CLIENTS[:3])
    with pytest.raises(HelperRefusalError, match="3 clients; this helper tells of 4 or more"):
        helper_of(min_members=4).judge(asked.request(members), asked.entry())
    strict = asking(secure={"min_members": 5})
    with pytest.raises(HelperRefusalError, match="4 clients; this helper tells of 5 or more"):
        helper_of().judge(strict.request(strict.members(CLIENTS[:4])), strict.entry())


def test_whoever_was_told_of_is_not_told_of_again_in_another_set_of_the_round(helper_of: Make) -> None:
    asked = asking()
    members = asked.members(CLIENTS[:5])
    answer(helper_of(), asked, members)
    for subset in (members[:4], members[1:]):
        refused = refusals(helper_of(), asked, subset)
        assert set(refused) == {f"client_{one.client_id.hex()}" for one in subset}
        assert all("told of before" in reason for reason in refused.values())
    again = asking(attempt=2)
    assert len(refusals(helper_of(), again, again.members(CLIENTS[2:]))) == 3, "the next attempt has the same updates"
    following, another_model = asking(round=2), asking(model=b"rolled back")
    answer(helper_of(), following, following.members(CLIENTS[:4]))
    answer(helper_of(), another_model, another_model.members(CLIENTS[:4]))


def test_a_refused_request_is_never_released_and_leaves_no_entry(helper_of: Make) -> None:
    asked, helper = asking(), helper_of()
    members = asked.members(CLIENTS[:5])
    answer(helper, asked, members)
    judged = helper.judge(asked.request(members[:4]), asked.entry())
    with pytest.raises(RuntimeError):
        helper.release(judged)
    with pytest.raises(UsageError, match="told of before"):
        helper.log.note(judged.release, now="now")
    assert helper.log.count == 1


def test_strangers_are_named(helper_of: Make) -> None:
    asked, stranger, impostor = asking(), Client(9), Client(1)
    members = asked.members([impostor, *CLIENTS[1:4], stranger])
    refused = refusals(helper_of(), asked, members)
    assert refused == {
        impostor.name: "its identity key is not the one on this helper's roster",
        stranger.name: "it is not on this helper's roster",
    }
    believing = asking(secure={"identity_trust": "server"})
    assert refusals(helper_of(roster=None), believing, believing.members([impostor, *CLIENTS[1:4], stranger])) == {}


def test_one_identity_that_stands_for_two_clients_is_refused_even_without_a_roster(helper_of: Make) -> None:
    asked = asking(secure={"identity_trust": "server"})
    twin = Client(8, identity=CLIENTS[0].identity)
    refused = refusals(helper_of(roster=None), asked, asked.members([*CLIENTS[:3], twin]))
    assert set(refused) == {CLIENTS[0].name, twin.name}


def test_a_run_that_promises_rosters_is_refused_by_a_helper_without_one(helper_of: Make) -> None:
    asked = asking()
    with pytest.raises(HelperRefusalError, match="rosters of their own"):
        helper_of(roster=None).judge(asked.request(asked.members(CLIENTS[:3])), asked.entry())


def test_contributions_to_another_manifest_are_refused(helper_of: Make) -> None:
    """A server that handed out two models, or says that this is another round, finds no signature for it."""
    asked, other = asking(), asking(model=b"another model")
    mixed = (*asked.members(CLIENTS[:3]), *other.members(CLIENTS[3:4]))
    assert set(refusals(helper_of(), asked, mixed)) == {CLIENTS[3].name}
    lying = asking(round=2)
    members = asked.members(CLIENTS[:4])
    assert len(refusals(helper_of(), lying, members)) == 4
    with pytest.raises(HelperRefusalError, match="by its manifest"):
        helper_of().judge(asked.request(members), asked.entry(round=2))


@pytest.mark.parametrize(
    "seal", [{"helper": 1}, {"context": bytes(32)}, {"client_id": bytes(16)}, {"vector_digest": bytes(32)}]
)
def test_a_seed_that_was_sealed_for_something_else_is_refused(helper_of: Make, seal: dict[str, Any]) -> None:
    asked = asking()
    bad = CLIENTS[3].contribute(asked.helpers, asked.context, **seal)
    refused = refusals(helper_of(), asked, (*asked.members(CLIENTS[:3]), bad))
    assert refused == {CLIENTS[3].name: "its sealed seed does not open"}


def test_a_signature_that_is_not_the_clients_is_refused(helper_of: Make) -> None:
    asked = asking()
    *good, last = asked.members(CLIENTS[:4])
    for change in ({"signature": bytes(64)}, {"vector_digest": bytes(32)}, {"sealed": good[0].sealed}):
        refused = refusals(helper_of(), asked, (*good, replace(last, **change)))
        assert set(refused) == {CLIENTS[3].name}
        assert "signature" in refused[CLIENTS[3].name]


def test_a_request_for_another_helper_or_of_nonsense_is_refused(helper_of: Make) -> None:
    asked = Asking([OTHER, OWN])
    members = asked.members(CLIENTS[:3])
    with pytest.raises(HelperRefusalError, match="other keys"):
        helper_of().judge(asked.request(members), asked.entry())
    own = asking()
    for data, what in ((b"", "cannot be read"), (own.request(()), "0 clients"), (os.urandom(500), "cannot be read")):
        with pytest.raises(HelperRefusalError, match=what):
            helper_of().judge(data, own.entry())


def release(*clients: str, digest: str = "d") -> Release:
    return Release("run_a", 1, "sha256:m", digest, clients)


def test_the_log_outlives_its_process_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    log = ReleaseLog.open(tmp_path)
    log.note(release("a", "b"), now="t")
    log.close()
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"sequence": 2, "cli')
    log = ReleaseLog.open(tmp_path)
    assert path.read_bytes() == whole
    assert log.told_before(release().place, ["a", "b", "c"], members_digest="e") == ["a", "b"]
    log.note(release("c", digest="e"), now="t")
    log.close()
    with closing(ReleaseLog.open(tmp_path)) as log:
        assert log.count == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: lines[1:],
        lambda lines: [lines[0].replace(b'"a"', b'"x"'), *lines[1:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [b"nonsense\n", *lines],
    ],
)
def test_a_log_that_was_changed_is_noticed(tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]]) -> None:
    log = ReleaseLog.open(tmp_path)
    for name in "abc":
        log.note(release(name, digest=name), now="t")
    log.close()
    path = tmp_path / FILE_NAME
    path.write_bytes(b"".join(spoil(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(UsageError, match="does not follow"):
        ReleaseLog.open(tmp_path)


def test_two_processes_do_not_hold_one_log(tmp_path: Path) -> None:
    log = ReleaseLog.open(tmp_path)
    program = f"from client_sdk.mask_helper.release_log import ReleaseLog; ReleaseLog.open({str(tmp_path)!r})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "held by another process" in ended.stderr
    log.close()
    with closing(ReleaseLog.open(tmp_path)) as log:
        assert log.count == 0


def test_nothing_is_released_that_the_log_cannot_hold(helper_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, helper = asking(), helper_of()
    judged = helper.judge(asked.request(asked.members(CLIENTS[:3])), asked.entry())

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("client_sdk.mask_helper.release_log.os.fsync", full)
        with pytest.raises(UsageError, match="nothing is released"):
            helper.release(judged)
    assert helper_of().log.count == 0


def test_keys_are_made_once_and_are_private(tmp_path: Path) -> None:
    store = HelperKeyStore(tmp_path / "helper")
    made = store.create("clinic")
    assert store.load() == made
    assert store.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="already"):
        store.create("clinic")
    with pytest.raises(UsageError, match="no name"):
        HelperKeyStore(tmp_path / "other").create("a name")
    store.path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod"):
        store.load()
    store.path.chmod(0o600)
    store.path.write_text(json.dumps({"name": "clinic"}))
    with pytest.raises(UsageError, match="damaged"):
        store.load()
    with pytest.raises(UsageError, match="keygen"):
        HelperKeyStore(tmp_path / "nothing").load()
