"""What operations ask: alive, ready, metrics; and the documentation page, which needs no internet."""

from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, PlainTextResponse

from aggregator_service.api.dependencies import FlowDependency
from aggregator_service.flow import health
from fl_protocol import routes
from fl_protocol.problems import ProblemError, ProblemType

router = APIRouter(tags=["operations"])

STATIC_FOLDER: Final = Path(__file__).parent / "static"
STATIC_PATH: Final = "/static"
_ASSETS: Final = f"{STATIC_PATH}/swagger-ui"
_NOT_READY: Final[dict[int | str, dict[str, Any]]] = {503: {"description": "Not ready; `detail` says why"}}


@router.get(routes.HEALTHZ, summary="Alive", response_class=PlainTextResponse)
async def healthz() -> str:
    """Answers while the process lives."""
    return "ok\n"


@router.get(routes.READYZ, summary="Ready", responses=_NOT_READY)
async def readyz(flow: FlowDependency) -> dict[str, str]:
    """Answers 200 when the database is reachable and its schema is this version's."""
    problem = await health.why_not_ready(flow)
    if problem is not None:
        raise ProblemError(ProblemType.UNAVAILABLE, problem)
    return {"status": "ready"}


@router.get(routes.METRICS, summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(flow: FlowDependency) -> Response:
    """Gives counters of this process in Prometheus's text format."""
    return Response(flow.telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get(routes.DOCS, include_in_schema=False)
async def docs(_request: Request) -> Response:
    """Shows the OpenAPI document with Swagger UI from files of this package."""
    page = get_swagger_ui_html(
        openapi_url=routes.OPENAPI,
        title="FedQuorum API",
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon-32x32.png",
        swagger_ui_parameters={"validatorUrl": None, "persistAuthorization": False, "tryItOutEnabled": True},
    )
    page.headers["Content-Security-Policy"] = (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; frame-ancestors 'none'"
    )
    return page


@router.get(routes.OPENAPI, include_in_schema=False)
async def openapi(request: Request) -> Response:
    """Gives the OpenAPI document."""
    return JSONResponse(request.app.openapi())
