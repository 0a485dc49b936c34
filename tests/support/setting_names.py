"""Which environment variables there are: those that the code reads, and those that README.md documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_settings import BaseSettings

from api.settings import ApiSettings, DatabaseSettings
from worker.engine import judging, stages
from worker.settings import DispatcherSettings, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ((?:`[A-Z0-9_]+`(?:, )?)+) \| ([^|]+) \|", re.MULTILINE)
ENGINE = {"DUOLORA_DEVICE", "DUOLORA_DTYPE", stages.MEMORY_VARIABLE, judging.DINO_VARIABLE, judging.CSD_VARIABLE}
"""What the engine process reads itself."""
LIBRARIES = {"HF_HUB_OFFLINE", "HF_TOKEN"}
"""What the engine's libraries read and an operator may want to set."""


def defaults(settings: type[BaseSettings]) -> dict[str, Any]:
    """The variables of a process by name, with their defaults; its parts' included."""
    found: dict[str, Any] = {}
    prefix = settings.model_config.get("env_prefix", "").upper()
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseSettings):
            found |= defaults(field.annotation)
        else:
            found[f"{prefix}{name.upper()}"] = field.default
    return found


def known() -> dict[str, Mapping[str, Any]]:
    """The variables that each process knows."""
    return {
        "migrate": defaults(DatabaseSettings),
        "api": defaults(ApiSettings),
        "dispatcher": defaults(DispatcherSettings),
        "worker": defaults(WorkerSettings) | dict.fromkeys(ENGINE | LIBRARIES, None),
    }


def documented(process: str) -> set[str]:
    """The variables that README.md's table says a process uses."""
    rows = ROW.findall((ROOT / "README.md").read_text())
    assert len(rows) > 20
    users = {"all": {"api", "dispatcher", "worker"}}
    return {
        name
        for names, used_by in rows
        if process in users.get(used_by, set(used_by.split(", ")))
        for name in re.findall(r"\w+", names)
    }
