"""Checkpoints as folders: safetensors and JSON, checked by SHA-256, complete or not there at all.

    <folder>/<step>/state.json                what it is of, how far it is, the values of every part
    <folder>/<step>/<part>.safetensors        the tensors of one part

A folder is written beside its place and renamed once all of it is on the disk, so that whoever finds it finds it whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from duolora.errors import CheckpointUnusable
from duolora.keeping import Part, Saved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the folder's layout and of the names in it; others are not read."""

STATE = "state.json"
_CHUNK_BYTES = 1 << 20
_VALUE = "value"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam and AdamW know of a parameter."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint."""

    name: str
    sha256: str
    size_bytes: int


def write_saved(saved: Saved, folder: Path, *, digest: str, paired: bool = False) -> tuple[Path, list[StoredFile]]:
    """Write a checkpoint to `folder/<step>`; return where it lies and its files.

    Args:
        saved: the state to write; tensors of any device.
        folder: an existing folder.
        digest: says what work it is of; reading asks for the same.
        paired: written in a pass that two stages shared; only told to whoever looks.

    Raises:
        OSError: the disk does not take it; nothing is left at `folder/<step>` then.
    """
    place = folder / str(saved.step)
    unfinished = folder / f"{saved.step}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        files = []
        for name, part in saved.parts.items():
            path = unfinished / f"{name}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in part.tensors.items()}, path)
            files.append(_settled(path))
        state = {
            "format": FORMAT,
            "digest": digest,
            "step": saved.step,
            "total": saved.total,
            "paired": paired,
            "parts": {
                name: {"values": dict(part.values), "sha256": file.sha256}
                for (name, part), file in zip(saved.parts.items(), files, strict=True)
            },
        }
        (unfinished / STATE).write_text(json.dumps(state), encoding="utf-8")
        files.append(_settled(unfinished / STATE))
        _sync(unfinished)
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
        _sync(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return place, files


def read_saved(folder: Path, *, digest: str) -> Saved:
    """Read the checkpoint in a folder.

    Raises:
        CheckpointUnusable: a file is missing, damaged, of another format or of other work.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT or state["digest"] != digest:
            raise CheckpointUnusable("the checkpoint is of other work: its configuration, pictures or base differ")
        parts = {name: _read_part(folder, name, entry) for name, entry in state["parts"].items()}
        return Saved(int(state["step"]), int(state["total"]), parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointUnusable(f"the checkpoint cannot be read: {type(error).__name__}: {error}") from error


def _read_part(folder: Path, name: str, entry: Mapping[str, Any]) -> Part:
    """Read one part and check its bytes; the tensors are copies, so the files may go."""
    path = folder / f"{name}.safetensors"
    if _sha256(path) != entry["sha256"]:
        raise CheckpointUnusable(f"{path.name} of the checkpoint is damaged")
    return Part({key: tensor.clone() for key, tensor in load_file(path).items()}, entry["values"])


def _settled(path: Path) -> StoredFile:
    """Bring a written file to the disk and describe it."""
    _sync(path)
    return StoredFile(path.name, _sha256(path), path.stat().st_size)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def learner_tensors(named: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return parameters and what Adam or AdamW knows of them, by name; views, not copies."""
    tensors = {}
    for name, parameter in named.items():
        tensors[f"{_VALUE}/{name}"] = parameter.detach()
        if parameter in optimizer.state:
            tensors |= {f"{key}/{name}": optimizer.state[parameter][key] for key in _MOMENTS}
    return tensors


def tenant_tensors(named: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, tenant: int) -> dict[str, Tensor]:
    """Return what `learner_tensors` would return of one tenant alone, where tenants lie along the first dimension."""
    # Steps are counted once for all tenants.
    return {
        name: tensor[tenant : tenant + 1] if tensor.dim() else tensor
        for name, tensor in learner_tensors(named, optimizer).items()
    }


def joined_tenants(parts: Sequence[Part]) -> Part:
    """Return the learners' tensors of several tenants as one part for `restore_learner`: `tenant_tensors` undone.

    Raises:
        CheckpointUnusable: the tenants' tensors do not fit each other.
    """
    if len(parts) == 1:
        return parts[0]
    learned = [name for name in parts[0].tensors if name.partition("/")[0] in {_VALUE, *_MOMENTS}]
    joined = {}
    for name in learned:
        tensors = [part.tensor(name) for part in parts]
        if len({(tensor.shape, tensor.dtype) for tensor in tensors}) > 1:
            raise CheckpointUnusable(f"{name} has not the same shape in the checkpoints of all tenants")
        joined[name] = torch.cat(tensors) if tensors[0].dim() else tensors[0]
    return Part(joined)


@torch.no_grad()
def restore_learner(named: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, part: Part) -> None:
    """Put parameters, which stay where they are in memory, and the optimiser's knowledge back.

    Raises:
        CheckpointUnusable: a parameter is missing or has another shape.
    """
    for name, parameter in named.items():
        value = part.tensor(f"{_VALUE}/{name}")
        if value.shape != parameter.shape or value.dtype != parameter.dtype:
            raise CheckpointUnusable(f"{name} has another shape or type in the checkpoint")
        parameter.copy_(value)
        if f"{_MOMENTS[0]}/{name}" in part.tensors:
            step, *moments = (part.tensor(f"{key}/{name}") for key in _MOMENTS)
            known = {key: moment.to(parameter.device) for key, moment in zip(_MOMENTS[1:], moments, strict=True)}
            # A fused optimiser counts on the device.
            optimizer.state[parameter] = {_MOMENTS[0]: step.to(parameter.device)} | known


def set_random_state(generator: torch.Generator, state: Tensor) -> None:
    """Let a source of random numbers go on as the one did that the state, (bytes,) uint8, was taken of.

    Raises:
        CheckpointUnusable: it is no such state.
    """
    try:
        generator.set_state(state)
    except (RuntimeError, TypeError) as error:
        raise CheckpointUnusable(f"the state of the random numbers cannot be used: {error}") from error


class FolderKeeper:
    """Keeps the newest checkpoint of one piece of work in a folder of its own, and goes on from what it finds there."""

    def __init__(self, folder: Path, *, digest: str, every_s: float = 20.0) -> None:
        """`digest` says what work it is: checkpoints of other work are passed over, as damaged ones are."""
        self._folder = folder
        self._digest = digest
        self._every_s = every_s
        folder.mkdir(parents=True, exist_ok=True)
        self._found = self._newest()
        self._kept_at = monotonic()

    def resume(self) -> Saved | None:
        """Return the newest whole checkpoint of this work."""
        return self._found

    def is_due(self) -> bool:
        """Say whether it is time for one."""
        return monotonic() - self._kept_at >= self._every_s

    def keep(self, saved: Saved) -> None:
        """Write it, then remove those before it."""
        place, _ = write_saved(saved, self._folder, digest=self._digest)
        for other in self._folder.iterdir():
            if other != place and other.is_dir() and other.name.removesuffix(".tmp").isdecimal():
                shutil.rmtree(other, ignore_errors=True)
        self._kept_at = monotonic()

    def should_finish(self) -> bool:
        """Never: whoever wants less gives fewer steps."""
        return False

    def _newest(self) -> Saved | None:
        places = [path for path in self._folder.iterdir() if path.name.isdecimal()]
        for place in sorted(places, key=lambda path: int(path.name), reverse=True):
            try:
                return read_saved(place, digest=self._digest)
            except CheckpointUnusable as error:
                log.warning("passing over checkpoint %s: %s", place.name, error)
        return None
