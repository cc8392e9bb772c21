"""The HTTP application: routes, the shape of errors, the documents. Made from a context; starts nothing by itself."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.routing import compile_path

from services.api import routes_audit, routes_datasets, routes_models, routes_output, routes_runs, routes_versions
from services.api.context import Context
from services.api.edge import Edge
from services.api.problems import METHOD_NOT_ALLOWED, on_http_exception, on_invalid_request
from services.backbone.health import Health, health_routes

VERSION = "1.0.0"
ASYNCAPI = Path(__file__).parents[2] / "schemas" / "exported" / "asyncapi.json"
DESCRIPTION = """
Train custom models: upload a script and a dataset, call one endpoint, get a version.

Every request needs `Authorization: Bearer <JWT>`; the scope that a request needs stands with it. Errors are
`application/problem+json` (RFC 9457) with a stable `type`. POSTs take an `Idempotency-Key`.
"""
PROBLEM_SCHEMA = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
    "additionalProperties": True,
}


def make_application(context: Context | None, health: Health) -> FastAPI:
    """Make the application; without a context it can only describe itself."""
    # no redirects from "…/": they would go to whatever the Host header says
    app = FastAPI(title="Runyard", version=VERSION, description=DESCRIPTION, redirect_slashes=False)
    app.state.context = context
    for routes in (routes_datasets, routes_models, routes_runs, routes_output, routes_versions, routes_audit):
        app.include_router(routes.router)
    app.router.routes.extend(health_routes(health))
    app.add_api_route("/asyncapi", _asyncapi, include_in_schema=False)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_middleware(Edge)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer with a problem; a 405 names every method of its path, where the framework names one route's."""
    response = await on_http_exception(request, error)
    if response.status_code == METHOD_NOT_ALLOWED.status:
        for path, item in describe(request.app)["paths"].items():
            if compile_path(path)[0].fullmatch(request.url.path):
                response.headers["Allow"] = ", ".join(sorted(method.upper() for method in item))
    return response


async def _asyncapi(_: Request) -> Response:
    return FileResponse(ASYNCAPI, media_type="application/json")


def describe(app: FastAPI) -> dict[str, Any]:
    """Make the OpenAPI document: FastAPI's own, with the problem's schema and the bearer scheme."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = document.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
        app.openapi_schema = document
    return app.openapi_schema
