"""Puts the routes together into one ASGI application."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from aggregator_service.api import (
    clients,
    direct,
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

_TAGS: Final = (
    {"name": "runs", "description": "What is trained, and how it goes."},
    {"name": "privacy", "description": "What a run promises and what it has spent."},
    {"name": "clients", "description": "Who may take part."},
    {"name": "tasks", "description": "What clients do."},
    {"name": "uploads", "description": "Bodies that go on after a cut."},
    {"name": "models", "description": "The initial model in, every version out."},
    {"name": "secure aggregation", "description": "Masked sums that clients compute with each other."},
    {"name": "helper mode", "description": "Masked sums that independent helpers unmask."},
    {"name": "operations", "description": "Health, metrics and these pages."},
)
"""In the order in which the docs page shows them."""


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
    protected = [Depends(authenticated)]
    # Routes are tried in this order, and what clients send most is not looked for long.
    app.include_router(tasks.direct, dependencies=protected)
    for module in (runs, privacy, exclusions, clients, tasks, uploads, models, sessions, helper_mode):
        app.include_router(module.router, dependencies=protected)
    app.include_router(operations.router)
    app.mount(operations.STATIC_PATH, StaticFiles(directory=operations.STATIC_FOLDER), name="static")
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def serve(app: FastAPI, telemetry: Telemetry) -> ASGIApp:
    """Gives what the application is served as.

    Around it what is asked for most is answered directly, requests are held and every answer is counted.
    """
    return instruments.Instruments(holding.Holding(direct.Direct(app, tasks.direct, telemetry), telemetry), telemetry)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        # What is tried first is not what is read first.
        direct, *others = app.routes
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description.strip(),
            routes=[*others, direct],
            tags=[dict(tag) for tag in _TAGS],
        )
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema
