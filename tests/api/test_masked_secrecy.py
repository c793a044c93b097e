"""What a thief of the whole server would find of a masked run: nothing of any one update, in no phase of a session."""

import httpx
import numpy as np

from fl_protocol.masking.ring import pack, to_words
from tests.support.masked import MaskedClient, MaskedCohort, masked_spec
from tests.support.participant import create_run, wait_for_run
from tests.support.server import ServerProcess
from tests.support.stored import Stored
from tests.support.vestiges import LogPlace, database_files, everything_kept, log_end

SIZE = 16_000
CHI_SQUARE_255 = 390.0
"""Beyond this value of chi^2 with 255 degrees of freedom a uniform source comes with a probability of 2e-7."""


def plaintexts(client: MaskedClient, cohort: MaskedCohort, delta: np.ndarray) -> list[bytes]:
    """Gives an update's coordinates in every form in which they could be kept: eight in a row."""
    words = to_words(client.vector, cohort.ring)
    forms = [pack(words, cohort.ring.bits), words.tobytes(), client.vector.tobytes()]
    forms += [delta.astype(dtype).tobytes() for dtype in (np.float32, np.float64)]
    return [form[: 8 * len(form) // SIZE] for form in forms]


def assert_nothing_of(server: ServerProcess, secrets: list[bytes], since: LogPlace | None) -> None:
    for name, content in everything_kept(server, since):
        assert not [secret for secret in secrets if secret in content], name


def chi_square(data: bytes) -> float:
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2).sum() / expected)


def test_nothing_of_an_update_is_kept_in_any_phase(server: ServerProcess, operator: httpx.Client) -> None:
    model, since = {"w": np.zeros(SIZE, dtype=np.float32)}, log_end(server)
    run_id = create_run(operator, model, **masked_spec(4))
    cohort = MaskedCohort.enrol(operator, run_id, 4)
    secrets: list[bytes] = []
    for number, client in enumerate(cohort.clients, start=1):
        client.claim(run_id)
        client.vector = np.full(SIZE + 1, 0x1234 * number + 0x57, dtype=np.int64)
        client.vector[-1] = 1
        secrets += plaintexts(client, cohort, np.full(SIZE, client.vector[0] * cohort.ring.step))
    cohort.seat()
    cohort.phase(MaskedClient.send_shares)
    assert_nothing_of(server, secrets, since)

    cohort.phase(lambda client: client.send_input(cohort.ring), cohort.clients[1:])
    with Stored(server.database_url) as stored:
        inputs = stored.rows(
            "SELECT data FROM blob_chunks JOIN session_members ON input_blob_id = blob_id WHERE session_id = :a",
            a=cohort.clients[0].session_id,
        )
    assert len(inputs) == 3
    assert max(chi_square(bytes(data)) for (data,) in inputs) < CHI_SQUARE_255
    cohort.clients[0].send_input(cohort.ring)
    assert_nothing_of(server, secrets, since)

    cohort.phase(MaskedClient.send_signature)
    cohort.phase(MaskedClient.send_answer, cohort.clients[1:])
    assert_nothing_of(server, secrets, since)

    cohort.clients[0].send_answer()
    wait_for_run(operator, run_id, version=1)
    assert_nothing_of(server, secrets, since)
    total = cohort.expected().tobytes()[:64]
    found = {name for name, content in everything_kept(server, since) if total in content}
    assert "tables" in found, "the scan does not look where sums are"
    assert since is None or "write-ahead log" in found, "the scan does not look where Postgres writes first"
    assert server.stop() == 0
    sent = [client.sent[what] for client in cohort.clients for what in ("shares", "inputs", "unmask")]
    messages = [data[at : at + 33] for data in sent for at in (5, len(data) - 33)]
    assert_nothing_of(server, secrets + messages if list(database_files(server)) else secrets, since)
