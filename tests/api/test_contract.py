"""The OpenAPI document against the service: what it allows is answered as it says, and nothing is answered with 5xx.

Requests are generated from the document alone, first one by one, then along its links: what was made is looked at,
changed and deleted in any order. A new path takes part as soon as the document has it.
"""

import copy
import json
import socket
import struct
import threading
from contextlib import suppress

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from api import openapi
from api.accounts.service import issue_key
from api.main import create_app
from tests.api.factories import png

ENDLESS = "stream_events"
"""Ends when its job does, and no job ends here."""
SPEC = openapi.document()
OPERATIONS = [
    operation["operationId"]
    for entry in SPEC["paths"].values()
    for operation in entry.values()
    if "parameters" in operation or "requestBody" in operation
]
"""All but those that nothing can be said to."""
NOUNS = sorted(
    {
        path.split("/")[1]
        for path, entry in SPEC["paths"].items()
        for response in entry.get("post", {}).get("responses", {}).values()
        if "links" in response
    }
)
"""First parts of the paths under which something can be made."""
QUICK = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


def weights():
    """A small LoRA file of zeros."""
    shapes = {"lora_A": (4, 8), "lora_B": (8, 4)}
    header = {
        f"unet.down_blocks.0.attentions.0.to_q.{name}.weight": {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": (128 * at, 128 * at + 128),
        }
        for at, (name, shape) in enumerate(shapes.items())
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(256)


FORM = "multipart/form-data"
WANTED = {
    "submit_job": {"content_images": [png()], "style_images": [png(color="teal")]},
    "upload_lora": {"file": weights()},
}
"""Bodies of what nobody makes up by chance; the other test tries."""

schemathesis.openapi.format("binary", st.sampled_from([png(), png(color="teal")]))


@pytest.fixture
def address(api_settings, store):
    """A server of the service; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(api_settings)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def schema(address, sessions):
    key = issue_key(sessions, account="mine").text

    def make(spec):
        made = schemathesis.openapi.from_dict(spec)
        made.config.update(base_url=address, headers={"Authorization": f"Bearer {key}"}, request_timeout=30)
        checks = made.config.checks
        checks.ignored_auth.enabled = False  # takes the key that is always sent for one made up
        checks.positive_data_acceptance.enabled = False  # a document cannot say all that is wrong with a field
        return made

    return make


def with_ready_bodies():
    """The document without the choices that `WANTED` makes."""
    spec = copy.deepcopy(SPEC)
    for entry in spec["paths"].values():
        for operation in entry.values():
            if operation["operationId"] in WANTED:
                operation.pop("parameters", None)
                files = WANTED[operation["operationId"]]
                schema = operation["requestBody"]["content"][FORM]["schema"]
                schema = spec["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
                parts = {name: schema["properties"][name] for name in files}
                form = {"type": "object", "required": [*files], "properties": parts, "additionalProperties": False}
                operation["requestBody"]["content"] = {FORM: {"schema": form}}
    return spec


def at_once(case):
    """Let no generated wish hold an answer back."""
    if case.query:
        case.query.pop("wait", None)
    if case.headers:
        case.headers.pop("Prefer", None)


@pytest.mark.parametrize(("mode", "examples"), [(GenerationMode.POSITIVE, 5), (GenerationMode.NEGATIVE, 2)])
def test_every_operation_keeps_its_contract(mode, examples, schema):
    whole = schema(SPEC)
    for name in OPERATIONS:
        operation = whole.find_operation_by_id(name)

        @settings(max_examples=examples, **QUICK)
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case):
            at_once(case)
            case.call_and_validate()

        with suppress(Unsatisfiable):  # a request of which everything is allowed
            run()


@pytest.mark.parametrize("noun", NOUNS)
def test_what_was_made_keeps_its_contract_along_the_links(noun, schema):
    ready = schema(with_ready_bodies())
    ready.config.checks.negative_data_rejection.enabled = False  # bodies are replaced below
    machine = ready.include(path_regex=f"^/{noun}(/|$)").exclude(operation_id=ENDLESS).as_state_machine()
    reached = set()

    class Workflow(machine):
        def before_call(self, case):
            at_once(case)
            if (name := case.operation.definition.raw["operationId"]) in WANTED:
                case.media_type, case.body = FORM, dict(WANTED[name])

        def after_call(self, response, case):
            reached.add((case.operation.definition.raw["operationId"], response.status_code))

    Workflow.run(settings=settings(max_examples=5, stateful_step_count=8, **QUICK))
    assert {status for _, status in reached} & {201, 202}, f"nothing was made: {sorted(reached)}"
