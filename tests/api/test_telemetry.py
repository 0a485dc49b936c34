import json
import logging
import re
import threading

import pytest

from api.telemetry import JsonFormatter, bind_request, bound, current_request_id, current_traceparent
from worker import logs

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def line(**extra):
    record = logging.makeLogRecord({"name": "api.x", "levelname": "INFO", "msg": "hello %s", "args": ("you",), **extra})
    return json.loads(JsonFormatter().format(record))


def test_a_line_is_one_json_object_bound_to_its_request():
    bind_request(request_id="r1", traceparent=TRACE)
    document = line(status=200, key_id=None)
    assert "key_id" not in document
    assert (document["message"], document["level"], document["logger"]) == ("hello you", "info", "api.x")
    assert (document["request_id"], document["traceparent"], document["status"]) == ("r1", TRACE, 200)
    assert document["at"].endswith("+00:00")


def test_fields_are_bound_for_a_block():
    with bound(job="j", stage=None), bound(attempt=2):
        inside = line()
    assert (inside["job"], inside["attempt"], "stage" in inside) == ("j", 2, False)
    assert not {"job", "attempt"} & set(line())


def test_every_process_writes_the_same_lines(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    logs.configure("info")
    assert [type(handler.formatter) for handler in root.handlers] == [JsonFormatter]


def test_an_exception_stays_on_its_line():
    error = KeyError("lost")
    text = JsonFormatter().format(logging.makeLogRecord({"msg": "x", "exc_info": (KeyError, error, None)}))
    assert "\n" not in text
    assert "KeyError: 'lost'" in json.loads(text)["exception"]


def test_a_newline_in_a_message_does_not_forge_a_line():
    assert "\n" not in JsonFormatter().format(logging.makeLogRecord({"msg": 'a\n{"level": "error"}'}))


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "",
        "nonsense",
        TRACE.upper(),
        TRACE.replace("00-", "ff-", 1),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        TRACE + "-more",
    ],
)
def test_a_malformed_trace_is_replaced_by_a_fresh_one(bad):
    bind_request(request_id=None, traceparent=bad)
    assert current_traceparent() != bad
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", current_traceparent())
    assert len(current_request_id()) == 32
