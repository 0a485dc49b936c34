from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from worker.engine.lines import LOGGERS, MAX_LENGTH, MAX_PER_S, PipeLines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.wire import LogLine

log = logging.getLogger("duolora.some.module")


class Heard:
    """Stands where the pipe begins."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []

    def send(self, line: LogLine) -> None:
        self.lines.append(line)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def lines(heard: Heard) -> Iterator[PipeLines]:
    lines = PipeLines(heard)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    lines.install()
    yield lines
    for name, level in levels.items():
        logging.getLogger(name).removeHandler(lines)
        logging.getLogger(name).setLevel(level)


def test_lines_of_the_engine_are_sent_as_those_of_the_run(lines: PipeLines, heard: Heard) -> None:
    log.info("between runs")
    with lines.bound("stage:1"):
        log.debug("too small")
        log.info("step %d", 4)
        logging.getLogger("urllib3").warning("a library's")
    log.info("after it")

    assert [(line.id, line.level, line.message) for line in heard.lines] == [("stage:1", "info", "step 4")]


def test_a_line_is_short_and_has_no_traceback(lines: PipeLines, heard: Heard) -> None:
    with lines.bound("stage:1"):
        try:
            {}["secret detail"]
        except KeyError:
            log.exception("it failed %s", "x" * 3_000)

    [line] = heard.lines
    assert line.level == "error"
    assert len(line.message) == MAX_LENGTH
    assert "secret" not in line.message


def test_a_flood_is_cut_and_said_to_be(lines: PipeLines, heard: Heard) -> None:
    with lines.bound("stage:1"):
        for number in range(MAX_PER_S + 30):
            log.info("line %d", number)

    sent = [line.message for line in heard.lines]
    assert sent[:MAX_PER_S] == [f"line {number}" for number in range(MAX_PER_S)]
    assert len(sent) < MAX_PER_S + 30
    assert "lines were left out" in sent[-1]
