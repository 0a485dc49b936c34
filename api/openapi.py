"""The OpenAPI document: FastAPI's, with its own error shapes taken out, since every error here is a problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.jobs.schemas import JobParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

REF = "#/components/schemas/{model}"
_FRAMEWORK_SHAPES = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Make an application serve the corrected document."""
    generate = app.openapi

    def corrected() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _corrected(generate())
        return app.openapi_schema

    app.openapi = corrected  # type: ignore[method-assign]  # FastAPI's documented way


def _corrected(document: dict[str, Any]) -> dict[str, Any]:
    shapes: dict[str, Any] = document["components"]["schemas"]
    for name in _FRAMEWORK_SHAPES:
        shapes.pop(name, None)
    for operation in _operations(document):
        responses: dict[str, Any] = operation["responses"]
        for status in [status for status, response in responses.items() if _is_framework_error(response)]:
            del responses[status]
    params = JobParams.model_json_schema(ref_template=REF)
    shapes.update(params.pop("$defs"))
    shapes["JobParams"] = params
    return document


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for section in ("paths", "webhooks"):
        for path in document.get(section, {}).values():
            yield from path.values()


def _is_framework_error(response: dict[str, Any]) -> bool:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    return bool(schema.get("$ref", "").endswith("/HTTPValidationError"))
