"""What the contract says of every refusal, written down a second time so that the product cannot drift from it."""

from typing import Any

import httpx

STATUS = {
    "malformed-update": 400,
    "malformed-request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "already-submitted": 409,
    "state-conflict": 409,
    "equivocation": 409,
    "mismatching-upload-offset": 409,
    "completed-upload": 409,
    "phase-closed": 409,
    "round-closed": 410,
    "run-finished": 410,
    "removed": 410,
    "session-aborted": 410,
    "too-large": 413,
    "unsupported-media-type": 415,
    "range-not-satisfiable": 416,
    "invalid-request": 422,
    "structure-mismatch": 422,
    "non-finite": 422,
    "value-out-of-range": 422,
    "invalid-metadata": 422,
    "digest-mismatch": 422,
    "invalid-message": 422,
    "idempotency-key-reused": 422,
    "too-many-requests": 429,
    "internal-error": 500,
    "unavailable": 503,
    "insufficient-storage": 507,
    "request-timeout": 408,
}
RETRYABLE = {
    "too-many-requests",
    "request-timeout",
    "internal-error",
    "unavailable",
    "insufficient-storage",
    "digest-mismatch",
}


def assert_refused(answer: httpx.Response, slug: str, *named: str) -> dict[str, Any]:
    """Checks that an answer is this problem in the contract's form and that its detail names what it should."""
    assert answer.headers["content-type"] == "application/problem+json", (answer.status_code, answer.text)
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["type"]) == (STATUS[slug], f"/problems/{slug}"), problem
    assert problem["status"] == answer.status_code
    assert problem["title"]
    assert problem["retryable"] is (slug in RETRYABLE)
    if answer.status_code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for text in named:
        assert text in problem["detail"], f"{text!r} is not in {problem['detail']!r}"
    return problem
