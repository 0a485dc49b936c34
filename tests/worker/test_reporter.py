"""What a worker tells of a stage while it runs."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from worker.mailbox import Mailbox
from worker.reporter import StageReporter
from worker.wire import ProgressReport

if TYPE_CHECKING:
    import pytest


def test_a_flush_waits_for_a_beat_that_has_taken_the_last_report(monkeypatch: pytest.MonkeyPatch):
    """Else the end of the stage is written first, and the report is refused."""
    stage: Any = SimpleNamespace(by_job=[(SimpleNamespace(stage_id=1),)])
    unused: Any = None
    reporter = StageReporter(stage, run_id="1", sessions=unused, mailbox=Mailbox(), settings=unused)
    taken, goes_on, written = threading.Event(), threading.Event(), []

    def write(_job: object, fields: dict[str, Any], _lines: object) -> list[Any]:
        taken.set()
        assert goes_on.wait(30)
        written.append(fields["step"])
        return []

    monkeypatch.setattr(reporter, "_write", write)
    reporter.report(ProgressReport(id="1", step=10, total=10, loss=None, note=""))
    beat, flush = threading.Thread(target=reporter._beat), threading.Thread(target=reporter.flush)
    beat.start()
    assert taken.wait(30)
    flush.start()
    flush.join(0.2)
    assert flush.is_alive()
    goes_on.set()
    for thread in (beat, flush):
        thread.join(30)
    assert written == [10]
