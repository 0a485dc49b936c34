"""The most memory that a stage takes."""

from worker.engine import memory
from worker.engine.memory import PeakMemory

MIB = 1024 * 1024


def test_a_peak_is_that_of_its_own_time():
    large = PeakMemory()
    held = bytearray(200 * MIB)
    del held
    small = PeakMemory()
    assert large._of_host
    assert small.peak_bytes() is not None
    again = bytearray(20 * MIB)
    del again
    ended = PeakMemory()
    assert ended.peak_bytes() < small.peak_bytes() + MIB


def test_memory_that_is_gone_again_counts():
    before = PeakMemory()
    base = before.peak_bytes()
    held = bytearray(200 * MIB)
    del held
    assert before.peak_bytes() - base > 150 * MIB


def test_where_the_kernel_does_not_count_anew_nothing_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "none" / "clear_refs")
    assert PeakMemory().peak_bytes() is None
