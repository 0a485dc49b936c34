"""What every connection of the service is bound by."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from api.db import make_engine, reading, session_factory

ALL_BUT_MINE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pooled'"


@pytest.fixture
def pooled(database_url):
    made = []

    def make(trusted_for_s):
        made.append(make_engine(database_url, application_name="pooled", trusted_for_s=trusted_for_s))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


@pytest.mark.parametrize("trusted_for_s", [0.0, 1e-9])
def test_a_connection_that_died_while_it_lay_there_is_made_anew(pooled, engine, trusted_for_s):
    mine = pooled(trusted_for_s)
    with mine.connect() as connection:
        before = connection.scalar(text("SELECT pg_backend_pid()"))
    with engine.connect() as connection:
        connection.execute(text(ALL_BUT_MINE))
    with mine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != before


def test_a_trusted_connection_that_died_costs_one_request(pooled, engine):
    mine = pooled(60)
    for _ in range(2):
        with mine.connect() as connection:
            connection.execute(text("SELECT 1"))
    with engine.connect() as connection:
        connection.execute(text(ALL_BUT_MINE))
    with pytest.raises(OperationalError) as lost, mine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert lost.value.connection_invalidated
    with mine.connect() as connection:
        connection.execute(text("SELECT 1"))


def test_reading_needs_no_transaction(pooled):
    mine = pooled(60)
    with reading(session_factory(mine)).connect() as connection:
        assert connection.connection.dbapi_connection.autocommit
    with mine.connect() as connection:  # the same one, given back as it was
        assert not connection.connection.dbapi_connection.autocommit


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("statement_timeout", "30s"), ("idle_in_transaction_session_timeout", "15s"), ("timezone", "UTC")],
)
def test_no_connection_waits_or_holds_locks_for_ever(database_url, setting, expected):
    engine = make_engine(database_url)
    with engine.connect() as connection:
        assert connection.scalar(text(f"SHOW {setting}")) == expected
    engine.dispose()
