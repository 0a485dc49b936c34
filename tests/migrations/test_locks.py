"""Migrating beside a service that holds locks, beside another deployment, and on a newer database."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import inspect, text

import migrations
from api.db import make_engine
from tests.migrations.revisions import NEXT, upgrade_to_next


@pytest.fixture
def engine(database_url):
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def test_a_revision_that_gets_no_lock_lets_the_others_through_and_tries_again(
    engine, database_url, tmp_path, monkeypatch
):
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 200)
    monkeypatch.setattr(migrations, "PAUSE_S", 0.1)
    pause, paused = migrations.time.sleep, threading.Event()

    def sleep(seconds):
        paused.set()
        pause(seconds)

    monkeypatch.setattr(migrations.time, "sleep", sleep)
    with ThreadPoolExecutor(1) as pool, engine.connect() as busy:
        busy.execute(text("SELECT * FROM jobs"))
        migrating = pool.submit(upgrade_to_next, database_url, tmp_path / "next", ["jobs"])
        assert paused.wait(20)
        with engine.connect() as other:
            other.execute(text("SELECT * FROM jobs"))
        busy.commit()
        migrating.result(30)
    assert "next_note" in {column["name"] for column in inspect(engine).get_columns("jobs")}


def test_a_table_in_use_all_the_time_ends_it_with_a_word_and_nothing_half_done(
    engine, database_url, tmp_path, monkeypatch
):
    for name, value in {"LOCK_TIMEOUT_MS": 50, "PAUSE_S": 0.01, "LOCK_TRIES": 2}.items():
        monkeypatch.setattr(migrations, name, value)
    with engine.connect() as busy:
        busy.execute(text("SELECT * FROM stages"))
        with pytest.raises(migrations.MigrationBlocked, match="in use"):
            upgrade_to_next(database_url, tmp_path / "next", ["stages", "jobs"])
        assert migrations.current(busy) == migrations.head()
    assert "next_note" not in {column["name"] for column in inspect(engine).get_columns("jobs")}


def test_two_deployments_at_once_build_an_index_beside_the_service(engine, database_url, tmp_path):
    """Who waits for the other must hold nothing that the build waits for."""
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(upgrade_to_next, database_url, tmp_path / f"next-{number}", ["jobs"]) for number in range(2)
        ]
        for migrating in both:
            migrating.result(60)
    with engine.connect() as connection:
        assert migrations.current(connection) == f"{NEXT}_index"
        valid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_jobs_next'::regclass")
        assert connection.scalar(valid) is True


def test_what_a_broken_off_build_has_left_is_built_anew(engine, database_url, tmp_path):
    with engine.begin() as connection:
        connection.execute(text("CREATE INDEX ix_jobs_next ON jobs (name)"))
    upgrade_to_next(database_url, tmp_path / "next", ["jobs"])
    [index] = [index for index in inspect(engine).get_indexes("jobs") if index["name"] == "ix_jobs_next"]
    assert index["column_names"] == ["next_note"]


def test_the_limits_are_those_of_the_connection(database_url):
    seen = {}

    def look(config):
        connection = config.attributes["connection"]
        for name in ("lock_timeout", "statement_timeout"):
            seen[name] = connection.scalar(text(f"SHOW {name}"))

    migrations._run(database_url, look)
    assert seen == {"lock_timeout": "3s", "statement_timeout": "1min"}


def test_the_version_before_finds_nothing_to_do_on_a_newer_database(engine, database_url, tmp_path):
    upgrade_to_next(database_url, tmp_path / "next", ["jobs"])
    with pytest.raises(migrations.NewerDatabase, match=NEXT):
        migrations.upgrade(database_url)
    command = [sys.executable, "-m", "migrations"]
    environment = os.environ | {"DATABASE_URL": database_url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert "nothing to do" in done.stdout
    with engine.connect() as connection:
        assert migrations.current(connection) == f"{NEXT}_index"
