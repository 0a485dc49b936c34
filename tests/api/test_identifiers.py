import time
import uuid

from api.identifiers import uuid7


def test_ids_are_version_7_and_sort_by_time():
    first = uuid7()
    after = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == after:
        pass  # to the next millisecond
    second = uuid7()
    assert first.version == second.version == 7
    assert first.variant == uuid.RFC_4122
    assert first < second
    assert abs((first.int >> 80) - after) < 1000


def test_ids_of_one_instant_differ():
    assert len({uuid7() for _ in range(1000)}) == 1000
