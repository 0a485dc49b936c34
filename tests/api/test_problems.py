"""Errors as callers meet them: what can be provoked on every path, and that no code goes undocumented."""

import ast
import re
from pathlib import Path

import pytest

from api import openapi
from api.accounts.scopes import Scope
from api.accounts.service import issue_key
from api.errors import ServiceError
from api.problems import _HTTP_CODES
from api.settings import RateSettings
from tests.api.factories import Caller

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "api" / "API.md").read_text()
SPEC = openapi.document()
OPERATIONS = [
    pytest.param(method.upper(), path, operation, id=operation["operationId"])
    for path, entry in SPEC["paths"].items()
    for method, operation in entry.items()
]
NOBODYS = "019ab2f0-0000-7000-8000-000000000000"
MEMBERS = {"type", "title", "status", "code", "retryable", "instance", "request_id"}


@pytest.fixture
def spent(serve, sessions):
    """A client whose key may make no further request today."""
    caller = Caller(serve(rates=RateSettings(requests=1, window_s=86_400)), issue_key(sessions, account="mine"))
    caller.get("/recipes")
    return caller


def filled(path):
    return re.sub(r"{\w+}", NOBODYS, path)


def check(answer, status):
    """It is a problem, the guide knows its code with this status, and it says the same of itself."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) >= MEMBERS
    assert (problem["status"], problem["type"]) == (status, "urn:duolora:problem:" + problem["code"])
    assert (status, problem["code"]) in guide()
    if status in {429, 503}:
        assert int(answer.headers["retry-after"]) > 0
    return problem


def guide():
    return {(int(status), code) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)` \|", GUIDE, re.MULTILINE)}


def documented(operation, status):
    return str(status) in operation["responses"]


every_operation = pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)


@every_operation
def test_every_operation_without_a_key(http, method, path, operation):
    if documented(operation, 401):
        check(http.request(method, filled(path)), 401)


@every_operation
def test_every_operation_with_a_key_of_all_scopes_but_the_one(http, sessions, method, path, operation):
    if documented(operation, 403):
        [wanted] = operation["security"][0]["api_key"]
        others = [scope for scope in Scope if scope not in {wanted, wanted.replace(":read", ":write"), Scope.ADMIN}]
        limited = Caller(http, issue_key(sessions, account="mine", scopes=others))
        answer = limited.request(method, filled(path))
        assert check(answer, 403)["missing_scopes"] == [wanted]
        assert f'error="insufficient_scope", scope="{wanted}"' in answer.headers["www-authenticate"]


@every_operation
def test_every_operation_of_an_unknown_id(caller, method, path, operation):
    if documented(operation, 404):
        body = {} if "requestBody" in operation else None
        check(caller.request(method, filled(path), json=body), 404)


@every_operation
def test_every_operation_of_what_is_no_id(caller, method, path, operation):
    if documented(operation, 404):
        body = {} if "requestBody" in operation else None
        check(caller.request(method, re.sub(r"{\w+}", "x y", path), json=body), 404)


@every_operation
def test_every_operation_with_a_body_of_another_type(caller, method, path, operation):
    if "requestBody" in operation:
        headers = {"Content-Type": "text/plain"}
        check(caller.request(method, filled(path), content=b"rank 8", headers=headers), 415)


@every_operation
def test_every_operation_with_a_body_that_is_too_large(caller, method, path, operation):
    if "requestBody" in operation:
        headers = {"Content-Length": str(10**10), "Content-Type": "application/json"}
        check(caller.request(method, filled(path), content=b"{", headers=headers), 413)


@every_operation
def test_every_operation_with_a_body_that_cannot_be_read(caller, method, path, operation):
    if "application/json" in operation.get("requestBody", {}).get("content", {}):
        headers = {"Content-Type": "application/json"}
        assert check(caller.request(method, filled(path), content=b"{", headers=headers), 422)["errors"]


@every_operation
def test_every_operation_with_a_query_that_is_refused(caller, method, path, operation):
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "query":
            problem = check(caller.request(method, filled(path), params={parameter["name"]: "no " * 50}), 422)
            assert [error["pointer"].split("/")[1] for error in problem["errors"]] == [parameter["name"]]


@every_operation
def test_every_operation_with_a_key_that_has_asked_too_often(spent, method, path, operation):
    assert documented(operation, 429) == documented(operation, 401)
    if documented(operation, 429):
        assert check(spent.request(method, filled(path)), 429)["violated_policies"] == ["requests"]


@every_operation
def test_every_operation_by_a_method_that_the_path_lacks(caller, method, path, operation):
    answer = caller.request("PUT", filled(path))
    check(answer, 405)
    allowed = {other.values[0] for other in OPERATIONS if other.values[1] == path}
    assert set(answer.headers["allow"].split(", ")) == allowed


@every_operation
def test_every_operation_its_examples_say_what_the_guide_says(method, path, operation):
    for status, response in operation["responses"].items():
        content = response.get("content", {}).get("application/problem+json")
        if content is not None:
            codes = {(int(status), code) for code in content["examples"]}
            assert codes <= guide()
            assert codes == {(each["value"]["status"], each["value"]["code"]) for each in content["examples"].values()}


@pytest.mark.parametrize("path", ["/nowhere", "/jobs/x/y/z", "/webhooks/deliveries", "/openapi.yaml", "/docs"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_404(caller, method, path):
    if (method, path) == ("POST", "/webhooks/deliveries"):
        return  # a webhook of that name is asked for: another method's business
    answer = caller.request(method, path)
    check(answer, 405 if answer.status_code == 405 else 404)


def test_a_broken_form_is_400(caller):
    check(caller.post("/jobs", content=b"x", headers={"Content-Type": "multipart/form-data; boundary=b"}), 400)
    check(caller.post("/jobs", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400)


def raised_codes():
    """Statuses and codes of all errors that the API raises, read from its source."""
    kinds = {kind.__name__: kind for kind in (ServiceError, *ServiceError.__subclasses__())}
    found = {(kind.status, kind.code) for kind in kinds.values()} | set(_HTTP_CODES.items())
    for path in (ROOT / "api").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in kinds:
                found |= {(kinds[node.func.id].status, code) for code in constants(node)}
    return found


def constants(call):
    return {
        keyword.value.value
        for keyword in call.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }


def test_every_code_of_an_answer_is_in_the_guide_and_no_other():
    assert guide() == raised_codes()


def test_every_code_of_a_failed_job_is_in_the_guide_and_no_other():
    """They are what classes of errors carry, and what the worker and the reaper write by hand."""
    found = set()
    for path in (
        *(ROOT / "worker").rglob("*.py"),
        ROOT / "duolora" / "errors.py",
        *(ROOT / "api" / "jobs").glob("*.py"),
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ClassDef(body=body):
                    found |= {
                        line.value.value
                        for line in body
                        if isinstance(line, ast.Assign)
                        and getattr(line.targets[0], "id", "") == "code"
                        and isinstance(line.value, ast.Constant)
                    }
                case ast.Call(func=ast.Name(id="_Cause"), args=[ast.Constant(value=code), *_]):
                    found.add(code)
                case ast.Call(func=ast.Name(id="problem" | "Failed")):
                    found |= constants(node)
    told = GUIDE.partition("### Of jobs")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE)) == found
