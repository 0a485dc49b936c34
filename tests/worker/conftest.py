"""Fixtures of the worker's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from api.db import make_engine, session_factory
from tests.support.vault import VAULT
from tests.worker.bench import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from api.storage import ObjectStore


@pytest.fixture
def bench(
    service_environment: dict[str, str], database_url: str, store: ObjectStore, tmp_path: Path
) -> Iterator[Bench]:
    engine = make_engine(database_url)
    yield Bench(environment=service_environment, sessions=session_factory(engine, VAULT), store=store, folder=tmp_path)
    engine.dispose()
