"""Settings from the environment."""

from __future__ import annotations

import pytest

from worker.settings import DispatcherSettings, WorkerSettings


@pytest.mark.parametrize("settings", [WorkerSettings, DispatcherSettings])
def test_a_variable_that_happens_to_have_the_name_of_a_part_is_not_ours(
    settings: type[WorkerSettings | DispatcherSettings],
    service_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in service_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ENGINE_THREADS", "3")
    for name in ("DATABASE", "REDIS", "STORE", "WEBHOOKS", "ENGINE"):
        monkeypatch.setenv(name, "docker")
    built = settings(log_level="WARNING")
    assert built.log_level == "WARNING"
    assert built.database.url.get_secret_value() == service_environment["DATABASE_URL"]
    assert getattr(built, "engine", None) is None or built.engine.threads == 3
