"""Cursors survive the journey to a caller and back, and nothing else is taken for one."""

import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import cursors
from api.cursors import Cursor, InvalidCursor


@given(
    st.integers(0, 2**53).map(lambda micros: cursors._EPOCH + micros * cursors._MICROSECOND),
    st.uuids(),
)
def test_a_cursor_survives_the_journey(created_at, row_id):
    cursor = Cursor(created_at, row_id)
    assert Cursor.decode(cursor.encode()) == cursor
    assert cursor.encode().replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "!!!!",
        "AAAA",
        "é",
        Cursor(datetime(2026, 1, 1, tzinfo=UTC), uuid.UUID(int=1)).encode()[:-2],
        "_" * 32,
        "A" * 33,
    ],
)
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(InvalidCursor):
        Cursor.decode(text)
