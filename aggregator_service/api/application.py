"""Puts the routes together into one ASGI application."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles

from aggregator_service.api import (
    clients,
    exclusions,
    helper_mode,
    holding,
    instruments,
    models,
    operations,
    pacing,
    privacy,
    problems,
    runs,
    sessions,
    tasks,
    uploads,
)
from aggregator_service.api.dependencies import authenticated
from aggregator_service.telemetry import Telemetry
from fl_protocol.problems import Problem

_DESCRIPTION: Final = """
Federated learning in plain HTTP: clients pull the global model, train on data that never leaves them and put their
weight delta back; when a quorum has arrived the server publishes the exact weighted mean as the next version.

Tensors travel as [safetensors](https://github.com/huggingface/safetensors) bytes, errors as
`application/problem+json` whose `detail` says what was wrong and what would be right.
"""


class Lifespan(Protocol):
    """Starts and stops what the application needs."""

    def __call__(self, app: FastAPI, /) -> AbstractAsyncContextManager[None]:
        """Gives the context in which the application serves."""
        ...


def create_application(*, version: str, telemetry: Telemetry, lifespan: Lifespan) -> FastAPI:
    """Makes the application; its lifespan must set `app.state.flow`."""
    app = FastAPI(
        title="FedQuorum",
        version=version,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    problems.install(app, telemetry)
    app.add_middleware(pacing.Pacing)
    app.add_middleware(holding.Holding, telemetry=telemetry)
    app.add_middleware(instruments.Instruments, telemetry=telemetry)
    protected = [Depends(authenticated)]
    # Routes are tried in this order, and what clients send most is not looked for long.
    app.include_router(tasks.direct, dependencies=protected)
    for module in (runs, privacy, exclusions, clients, tasks, uploads, models, sessions, helper_mode):
        app.include_router(module.router, dependencies=protected)
    app.include_router(operations.router)
    app.mount(operations.STATIC_PATH, StaticFiles(directory=operations.STATIC_FOLDER), name="static")
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description.strip(), routes=app.routes
        )
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema
