"""The paths of the contract, in one place for both sides."""

from typing import Final

RUNS: Final = "/v1/runs"
RUN: Final = "/v1/runs/{run_id}"
RUN_START: Final = "/v1/runs/{run_id}/start"
RUN_PAUSE: Final = "/v1/runs/{run_id}/pause"
RUN_RESUME: Final = "/v1/runs/{run_id}/resume"
RUN_STOP: Final = "/v1/runs/{run_id}/stop"
RUN_ROLLBACK: Final = "/v1/runs/{run_id}/rollback"
RUN_PRIVACY: Final = "/v1/runs/{run_id}/privacy"
RUN_LEDGER: Final = "/v1/runs/{run_id}/privacy/ledger"
RUN_ROUNDS: Final = "/v1/runs/{run_id}/rounds"
RUN_ROUND: Final = "/v1/runs/{run_id}/rounds/{number}"
ROUND_UPDATES: Final = "/v1/runs/{run_id}/rounds/{number}/updates"
RUN_MODELS: Final = "/v1/runs/{run_id}/models"
RUN_MODEL: Final = "/v1/runs/{run_id}/models/{version}"
CONTROL_VARIATE: Final = "/v1/runs/{run_id}/models/{version}/control-variate"
LATEST_MODEL: Final = "/v1/runs/{run_id}/models/latest"
BEST_MODEL: Final = "/v1/runs/{run_id}/models/best"
MODEL_EXPORT: Final = "/v1/runs/{run_id}/models/{version}/export"
INITIAL_MODEL: Final = "/v1/runs/{run_id}/models/0"
RUN_EVENTS: Final = "/v1/runs/{run_id}/events"
RUN_TASKS: Final = "/v1/runs/{run_id}/tasks"
RUN_EXCLUSIONS: Final = "/v1/runs/{run_id}/exclusions"
RUN_EXCLUSION: Final = "/v1/runs/{run_id}/exclusions/{client_id}"
ENROLMENT_TOKENS: Final = "/v1/enrolment-tokens"
CLIENTS: Final = "/v1/clients"
CLIENT: Final = "/v1/clients/{client_id}"
TASK: Final = "/v1/tasks/{task_id}"
TASK_UPDATE: Final = "/v1/tasks/{task_id}/update"
TASK_EVALUATION: Final = "/v1/tasks/{task_id}/evaluation"
HEALTHZ: Final = "/healthz"
READYZ: Final = "/readyz"
METRICS: Final = "/metrics"
DOCS: Final = "/docs"
OPENAPI: Final = "/openapi.json"

MAX_WAIT_SECONDS: Final = 60
MAX_PAGE_LIMIT: Final = 1000
DEFAULT_PAGE_LIMIT: Final = 100


def path(template: str, **parameters: str | int) -> str:
    """Fills a path's parameters; they are identifiers or numbers, so nothing needs escaping."""
    return template.format(**parameters)
