"""The committed document, and that its examples are what the service would take and say."""

import difflib
import json

import pytest

from api import health, openapi, schemas
from api.accounts import schemas as accounts
from api.accounts.scopes import Scope
from api.jobs import check_schemas as checks
from api.jobs import schemas as jobs
from api.jobs.event_types import EventType
from api.loras import schemas as loras
from api.uploads import schemas as uploads
from api.webhooks import schemas as webhooks

SPEC = openapi.document()
BODIES = [
    pytest.param(content, id=f"{operation['operationId']}-{status}")
    for section in ("paths", "webhooks")
    for entry in SPEC[section].values()
    for operation in entry.values()
    for status, part in [("request", operation.get("requestBody", {})), *operation["responses"].items()]
    for content in part.get("content", {}).values()
]


def test_the_committed_document_is_that_of_the_code():
    """If this fails: `make openapi`, and look at what changed."""
    committed, current = openapi.COMMITTED.read_text(), openapi.text()
    change = difflib.unified_diff(committed.splitlines(), current.splitlines(), "committed", "code", lineterm="", n=2)
    lines = list(change)[:80]
    assert not lines, "api/openapi.json is stale, `make openapi` writes it:\n" + "\n".join(lines)


@pytest.mark.parametrize("content", BODIES)
def test_every_body_has_an_example_of_its_shape(content):
    examples = (
        [each["value"] for each in content["examples"].values()] if "examples" in content else [content["example"]]
    )
    names = [name for schema in content["schema"].get("anyOf", [content["schema"]]) if (name := reference(schema))]
    for example, name in zip(examples, names * len(examples) if len(names) == 1 else names, strict=bool(names)):
        shape(name).model_validate_json(json.dumps(example), strict=True)


def test_every_operation_that_needs_a_key_says_which_scope_and_documents_its_refusal():
    for entry in SPEC["paths"].values():
        for operation in entry.values():
            [scheme] = operation.get("security", [{"api_key": []}])
            assert set(scheme["api_key"]) <= set(Scope)
            assert len(scheme["api_key"]) == ("401" in operation["responses"]) == ("403" in operation["responses"])


def test_every_event_is_a_webhook_with_the_standard_headers():
    assert set(SPEC["webhooks"]) == {*map(str, EventType), webhooks.PING}
    for kind, entry in SPEC["webhooks"].items():
        operation = entry["post"]
        names = {parameter["name"] for parameter in operation["parameters"] if parameter["required"]}
        assert names == {"webhook-id", "webhook-timestamp", "webhook-signature"}
        content = operation["requestBody"]["content"]["application/json"]
        assert content["schema"]["properties"]["type"] == {"const": kind} == {"const": content["example"]["type"]}


def test_what_a_form_may_hold_is_shown_by_an_example():
    content = SPEC["paths"]["/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert {*content["example"], "archive"} == set(content["schema"]["properties"])
    jobs.JobParams.model_validate(content["example"]["params"])


def test_the_document_does_not_depend_on_who_asks(monkeypatch):
    monkeypatch.setenv("PUBLIC_URL", "https://elsewhere.example")
    monkeypatch.setenv("PORT", "1")
    assert openapi.document() == SPEC


def reference(schema):
    parts = schema.get("allOf", [schema])
    return parts[0]["$ref"].rsplit("/", 1)[1] if "$ref" in parts[0] else None


def shape(name):
    modules = (jobs, checks, loras, schemas, uploads, webhooks, accounts, health)
    return next(getattr(module, name) for module in modules if hasattr(module, name))
