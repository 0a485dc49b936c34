"""The OpenAPI document: FastAPI's, without its own error shapes, since every error here is a problem; with examples.

`python -m api.openapi` writes it to `api/openapi.json`, which is committed so that a change of the wire is seen.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api import examples
from api.forms import MEDIA_TYPE
from api.jobs.schemas import JobParams, JobSubmission
from api.problems import problem_responses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

REF = "#/components/schemas/{model}"
COMMITTED = Path(__file__).with_name("openapi.json")
_MADE = ("201", "202")
"""Answers to a POST that made something with an id."""
_FRAMEWORK_SHAPES = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Make an application serve the corrected document."""
    generate = app.openapi

    def corrected() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _corrected(generate())
        return app.openapi_schema

    app.openapi = corrected  # type: ignore[method-assign]  # FastAPI's documented way


def document() -> dict[str, Any]:
    """Return the document of this code; no server is asked for it."""
    from pydantic import SecretStr  # noqa: PLC0415

    from api.main import create_app  # noqa: PLC0415 - the application is made of this module, among others
    from api.settings import ApiSettings, DatabaseSettings, RedisSettings, SealSettings, StoreSettings  # noqa: PLC0415

    nowhere = ApiSettings(
        database=DatabaseSettings(url="postgresql+psycopg://nobody@localhost/none"),
        redis=RedisSettings(url="redis://localhost"),
        store=StoreSettings(endpoint="http://localhost", access_key_id="none", secret_access_key="nothing-at-all"),  # noqa: S106
        seals=SealSettings(keys=SecretStr("nothing at all is sealed with this")),
    )
    return create_app(nowhere).openapi()


def text() -> str:
    """Return the document as it is committed."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the document."""
    COMMITTED.write_text(text())


def _corrected(whole: dict[str, Any]) -> dict[str, Any]:
    shapes: dict[str, Any] = whole["components"]["schemas"]
    for name in _FRAMEWORK_SHAPES:
        shapes.pop(name, None)
    for section, path, operation in _operations(whole):
        responses: dict[str, Any] = operation["responses"]
        for status in [status for status, response in responses.items() if _is_framework_error(response)]:
            del responses[status]
        if section == "paths" and "requestBody" in operation:
            responses.setdefault("400", problem_responses(400)[400])  # the framework's word for what is no JSON
        if section == "paths":
            _exemplify(path, operation)
        else:
            _exemplify_webhook(path, operation)
    _link(whole["paths"])
    for shape in (JobParams, JobSubmission):
        schema = shape.model_json_schema(ref_template=REF)
        shapes.update(schema.pop("$defs"))
        shapes[shape.__name__] = schema
    return whole


def _operations(whole: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for section in ("paths", "webhooks"):
        for path, entry in whole.get(section, {}).items():
            for operation in entry.values():
                yield section, path, operation


def _is_framework_error(response: dict[str, Any]) -> bool:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    return bool(schema.get("$ref", "").endswith("/HTTPValidationError"))


def _exemplify(path: str, operation: dict[str, Any]) -> None:
    """Put the examples of an operation into its request and its answers."""
    name = operation["operationId"]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        several = examples.SEVERAL_REQUESTS.get(name)
        if kind == MEDIA_TYPE:
            content["example"] = examples.FORMS.get(name, {})
        elif several is not None:
            content["examples"] = {case: {"value": value} for case, value in several.items()}
        else:
            content["example"] = examples.REQUESTS[name]
    for status, response in operation["responses"].items():
        for kind, content in response.get("content", {}).items():
            if kind == "application/problem+json":
                code, refusal = examples.refusal(name, int(status), path)
                content["examples"] = {code: {"value": refusal}}
            elif (name, int(status)) in examples.SEVERAL_ANSWERS:
                content["examples"] = {
                    which: {"value": each} for which, each in examples.SEVERAL_ANSWERS[name, int(status)].items()
                }
            else:
                content["example"] = examples.ANSWERS[name, int(status)]


def _link(paths: dict[str, Any]) -> None:
    """Tell of everything that can be made what can be done with it: its id goes into the paths below."""
    for path, entry in paths.items():
        if "{" in path:
            continue
        made = [
            entry["post"]["responses"][status]
            for status in _MADE
            if status in entry.get("post", {}).get("responses", {})
        ]
        noun = "/" + path.split("/")[1]
        below = re.compile(noun + r"/\{(\w+)\}(/\w+)?")
        for other, operations in paths.items():
            if not (match := below.fullmatch(other)):
                continue
            for operation in operations.values():
                name = operation["operationId"]
                for response in made:
                    link = {"operationId": name, "parameters": {match[1]: "$response.body#/id"}}
                    response.setdefault("links", {})[name] = link


def _exemplify_webhook(kind: str, operation: dict[str, Any]) -> None:
    """Say of the body of a webhook which type it has, and show one."""
    content = operation["requestBody"]["content"]["application/json"]
    content["schema"] = {"allOf": [content["schema"]], "properties": {"type": {"const": kind}}}
    content["example"] = examples.webhook(kind)


if __name__ == "__main__":
    main()
