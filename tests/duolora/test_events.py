from __future__ import annotations

import pytest

from duolora.errors import Cancelled
from duolora.events import Progress, Segment, Silent, advance
from tests.duolora.watch import Watcher


def test_advance_reports_before_it_stops() -> None:
    watcher = Watcher(stop_after=2)

    advance(watcher, Progress(step=1, total=5))
    with pytest.raises(Cancelled, match="step 2 of 5"):
        advance(watcher, Progress(step=2, total=5))

    assert [report.step for report in watcher.reports] == [1, 2]


def test_segment_reports_its_steps_as_part_of_the_whole() -> None:
    watcher = Watcher(stop_after=12)
    segment = Segment(watcher, before=10, total=30, note="drawing")

    segment.on_progress(Progress(step=1, total=10, loss=0.5, note="sampling"))
    assert not segment.should_stop()
    segment.on_progress(Progress(step=2, total=10))

    assert watcher.reports[0] == Progress(step=11, total=30, loss=0.5, note="drawing")
    assert segment.should_stop()


def test_silent_observer_never_stops() -> None:
    advance(Silent(), Progress(step=1, total=1))

    assert not Silent().should_stop()
