"""Checkpoints of one run (duolora.keeping.Keeper): where they lie, what they are of, when the parent hears of them."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING

from duolora.errors import CheckpointUnusable
from duolora.keeping import Saved
from worker.wire import Checkpointed, CheckpointFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from worker.engine.channel import Channel
    from worker.wire import Run

log = logging.getLogger("worker.engine.keeping")

SIDE_STAGES = {"content_lora": "content", "style_lora": "style"}
"""Stages that train one side, and which: a checkpoint of theirs has that one part, and depends on its pictures only."""


@dataclass(frozen=True)
class Place:
    """Where the checkpoints of one stage of a run go, and come from."""

    stage: str
    run: Run
    inputs_dir: Path
    folder: Path
    resume_dir: Path | None
    base_revision: str | None

    @cached_property
    def digest(self) -> str:
        """What the stage computes from: its configuration, its input files and the base."""
        side = SIDE_STAGES.get(self.stage)
        files = sorted(path for path in self.inputs_dir.rglob("*") if path.is_file())
        inputs = [
            (str(path.relative_to(self.inputs_dir)), hashlib.sha256(path.read_bytes()).hexdigest())
            for path in files
            if side is None or path.parent == self.inputs_dir / side
        ]
        work = {"stage": self.stage, "config": self.run.config, "base": self.base_revision, "inputs": inputs}
        return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()

    def share(self, saved: Saved) -> Saved:
        """Return what of a state is this stage's."""
        side = SIDE_STAGES.get(self.stage)
        if side is None:
            return saved
        return Saved(saved.step, saved.total, {side: saved.parts[side]} if side in saved.parts else {})

    def read(self) -> Saved | None:
        """Return the checkpoint to go on from.

        Raises:
            CheckpointUnusable: it cannot be read or is of other work.
        """
        from duolora.checkpoints import read_saved  # noqa: PLC0415 - torch, which fast tests do without

        return None if self.resume_dir is None else read_saved(self.resume_dir, digest=self.digest)


class PipeKeeper:
    """The keeper of one run: every checkpoint is the parent's as soon as it is told of it."""

    def __init__(self, channel: Channel, run: Run, places: Iterable[Place]) -> None:
        self.finished_early = False
        self._channel = channel
        self._run = run
        self._places = tuple(places)
        self._kept_at = monotonic()
        self._kept_step: int | None = None
        self._found: Saved | None = None
        self._has_read = False

    def resume(self) -> Saved | None:
        """Return what to go on from: the checkpoint of the stage, or of both stages of a pair.

        It is held in memory until the first checkpoint of the run's own.
        """
        if not self._has_read:
            self._found, self._has_read = self._read(), True
        return self._found

    def _read(self) -> Saved | None:
        found = [place.read() for place in self._places]
        whole = [saved for saved in found if saved is not None]
        if not whole:
            return None
        if len(whole) < len(found) or len({saved.step for saved in whole}) > 1:
            raise CheckpointUnusable("the two stages of a pair must go on from checkpoints of one step")
        log.info("going on from step %d of %d", whole[0].step, whole[0].total)
        parts = {name: part for saved in whole for name, part in saved.parts.items()}
        return Saved(whole[0].step, whole[0].total, parts)

    def is_due(self) -> bool:
        """Say whether it is time for a checkpoint, or the parent wants one before the run stops."""
        if self._channel.is_cancelled(self._run.id):
            return False
        return self._channel.is_paused(self._run.id) or monotonic() - self._kept_at >= self._run.checkpoint_every_s

    def keep(self, saved: Saved) -> None:
        """Write the checkpoint of every stage, then tell the parent of all; one of a step that it has is left out.

        A disk that does not take one costs that checkpoint, not the run.
        """
        from duolora.checkpoints import write_saved  # noqa: PLC0415 - torch, which fast tests do without

        if saved.step == self._kept_step:
            return
        try:
            events = []
            for place, share in self._shares(saved):
                paired = len(self._places) > 1
                folder, files = write_saved(share, place.folder, digest=place.digest, paired=paired)
                named = tuple(
                    CheckpointFile(name=file.name, sha256=file.sha256, bytes=file.size_bytes) for file in files
                )
                events.append(
                    Checkpointed(
                        id=self._run.id,
                        stage=place.stage,
                        step=saved.step,
                        total=saved.total,
                        folder=str(folder),
                        paired=paired,
                        files=named,
                    )
                )
        except OSError as error:
            log.warning("no checkpoint of step %d: %s", saved.step, error.strerror or type(error).__name__)
        else:
            for event in events:
                self._channel.send(event)
            self._kept_step = saved.step
        self._kept_at = monotonic()
        self._found = None

    def should_finish(self) -> bool:
        """Say whether the parent wants the run to end with what it has."""
        self.finished_early |= self._run.finish_early or self._channel.is_finishing(self._run.id)
        return self.finished_early

    def _shares(self, saved: Saved) -> Iterator[tuple[Place, Saved]]:
        """Yield every stage's share; a stage that has nothing to keep yet is given an empty one."""
        for place in self._places:
            yield place, place.share(saved)
