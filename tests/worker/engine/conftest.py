"""What tests of the engine process share: a base so small that it trains in no time."""

from __future__ import annotations

import pytest

from tests.duolora.pico import pico_base


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the base lies."""
    folder = tmp_path_factory.mktemp("pico") / "base"
    pico_base().pipeline.save_pretrained(folder)
    return str(folder)
