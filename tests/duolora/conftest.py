"""Fixtures of the engine's tests: the pico base, its folder on disk, and pictures.

`pytest tests/duolora --update-goldens` writes the files of tests/golden anew; look at the difference before
you commit it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.duolora.pico import draw_pictures, pico_base, pico_sd15_base, share_the_cores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duolora.models.base import DiffusionBase


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write tests/golden anew instead of comparing")


@pytest.hookimpl(tryfirst=True)  # before any fixture is made
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_process() -> None:
    share_the_cores()


@pytest.fixture(scope="session")
def shared_base() -> DiffusionBase:
    return pico_base()


@pytest.fixture
def base(shared_base: DiffusionBase) -> Iterator[DiffusionBase]:
    """The pico base; every test must leave it as it found it."""
    before = {path: id(module) for path, module in shared_base.unet.named_modules()}
    yield shared_base
    after = {path: id(module) for path, module in shared_base.unet.named_modules()}
    assert after == before, "the test left the base with other modules"


@pytest.fixture
def broken_base(base: DiffusionBase, monkeypatch: pytest.MonkeyPatch) -> DiffusionBase:
    """The pico base, for one test predicting nothing but NaN."""
    bias = base.unet.conv_out.bias
    monkeypatch.setattr(bias, "data", torch.full_like(bias, float("nan")))
    return base


@pytest.fixture(scope="session")
def sd15_base() -> DiffusionBase:
    return pico_sd15_base()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico base in diffusers' layout."""
    folder = tmp_path_factory.mktemp("pico") / "base"
    pico_base().pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def content_pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_pictures(tmp_path_factory.mktemp("pictures") / "content", ((230, 40, 40), (40, 200, 60)))


@pytest.fixture(scope="session")
def pictures(content_pictures: list[Path], style_pictures: list[Path]) -> dict[str, list[Path]]:
    """Those of both sides."""
    return {"content": content_pictures, "style": style_pictures}


@pytest.fixture(scope="session")
def style_pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_pictures(tmp_path_factory.mktemp("pictures") / "style", ((40, 40, 230), (240, 220, 40), (10, 10, 10)))
