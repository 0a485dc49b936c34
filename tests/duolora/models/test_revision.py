from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from duolora.models import revision
from duolora.models.revision import base_revision

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_folder_has_the_revision_of_its_files_wherever_it_lies(base_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    first = base_revision(str(base_folder))

    assert first is not None
    assert base_revision(str(copy)) == first

    scheduler = copy / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))
    assert base_revision(str(copy)) != first


def test_of_a_large_file_the_header_is_read_and_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "_WHOLE_FILE_BYTES", 100)
    path = tmp_path / "base.safetensors"
    revisions = []
    for tensors in ({"a": torch.zeros(99)}, {"a": torch.ones(99)}, {"b": torch.ones(99)}, {"b": torch.ones(98)}):
        save_file(tensors, path)
        revisions.append(base_revision(str(path)))

    assert revisions[0] == revisions[1]
    assert len(set(revisions)) == 3


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
