from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from duolora.models import revision
from duolora.models.revision import base_revision

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_has_the_revision_of_its_files_wherever_it_lies(base_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    first = base_revision(str(base_folder))

    assert first is not None
    assert base_revision(str(copy)) == first

    scheduler = copy / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))
    assert base_revision(str(copy)) != first


def test_a_large_file_written_over_by_one_of_the_same_layout_has_another_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision, "_WHOLE_FILE_BYTES", 100)
    path = tmp_path / "base.safetensors"
    revisions = []
    for tensors in ({"a": torch.zeros(99)}, {"a": torch.ones(99)}, {"b": torch.ones(99)}, {"b": torch.ones(98)}):
        save_file(tensors, path)
        revisions.append(base_revision(str(path)))

    assert len(set(revisions)) == 4


@pytest.mark.parametrize("name", ["base.safetensors", "base.bin"])
def test_a_large_file_is_read_in_places_from_its_first_byte_to_its_last(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file({"a": torch.zeros(32 * 2**20, dtype=torch.uint8)}, path)
    size = path.stat().st_size
    first = base_revision(str(path))
    assert base_revision(str(path)) == first

    def after_a_change_of(start: int, length: int) -> str | None:
        with path.open("r+b") as file:
            file.seek(start)
            old = file.read(length)
            file.seek(start)
            file.write(bytes(byte ^ 1 for byte in old))
        changed = base_revision(str(path))
        with path.open("r+b") as file:
            file.seek(start)
            file.write(old)
        return changed

    assert after_a_change_of(0 if name == "base.bin" else 1024, 1) != first
    assert after_a_change_of(size - 1, 1) != first
    for part in range(31):
        assert after_a_change_of(part * 2**20 + 12345, 2**19) != first
    between = size // 63 - 2**15  # half-way from the end of the first place to the start of the second
    assert after_a_change_of(between, 1) == first, "more is read of a large file than is said"
    assert base_revision(str(path)) == first


def test_a_snapshot_of_the_hub_has_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--stabilityai--sdxl"
    (repository / "snapshots" / "c0ffee").mkdir(parents=True)
    assert base_revision("stabilityai/sdxl") is None

    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee\n")

    assert base_revision("stabilityai/sdxl") == "commit:c0ffee"
    assert base_revision(str(repository / "snapshots" / "c0ffee")) == "commit:c0ffee"


def test_the_embedded_base_has_one_and_torch_is_not_needed_to_tell() -> None:
    code = (
        "import sys; from duolora.models.revision import base_revision; "
        "assert base_revision('tiny').startswith('files:'); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
