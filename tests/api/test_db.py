"""What every connection of the service is bound by."""

import pytest
from sqlalchemy import text

from api.db import make_engine


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("statement_timeout", "30s"), ("idle_in_transaction_session_timeout", "15s"), ("timezone", "UTC")],
)
def test_no_connection_waits_or_holds_locks_for_ever(database_url, setting, expected):
    engine = make_engine(database_url)
    with engine.connect() as connection:
        assert connection.scalar(text(f"SHOW {setting}")) == expected
    engine.dispose()
