"""Checkpoints of one run (duolora.keeping.Keeper): where they lie, what they are of, when the parent hears of them."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from duolora.errors import CheckpointUnusable
from duolora.keeping import Saved, of_tenant, of_tenants
from worker.wire import Checkpointed, CheckpointFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.engine.channel import Channel
    from worker.wire import Member, Run

log = logging.getLogger("worker.engine.keeping")

SIDE_STAGES = {"content_lora": "content", "style_lora": "style"}
"""Stages that train one side, and which: a checkpoint of theirs has that one part, and depends on its pictures only."""


@dataclass(frozen=True)
class Place:
    """Where the checkpoints of one member of a run go, and come from: those that it would keep were its job alone."""

    member: Member
    tenant: int
    """Place of its job among those of the run."""
    paired: bool
    """Its job has another stage in the run."""
    base_revision: str | None

    @cached_property
    def digest(self) -> str:
        """What the stage computes from: its configuration, its input files and the base."""
        stage, folder = self.member.stage, Path(self.member.inputs_dir)
        side = SIDE_STAGES.get(stage)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        inputs = [
            (str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest())
            for path in files
            if side is None or path.parent == folder / side
        ]
        work = {"stage": stage, "config": self.member.config, "base": self.base_revision, "inputs": inputs}
        return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()

    def share(self, saved: Saved) -> Saved:
        """Return what of a state is this stage's; nothing but the step if it has nothing to keep yet."""
        own = of_tenant(saved, self.tenant)
        side = SIDE_STAGES.get(self.member.stage)
        if side is None:
            return own
        return Saved(own.step, own.total, {side: own.parts[side]} if side in own.parts else {})

    def write(self, saved: Saved) -> tuple[Path, tuple[CheckpointFile, ...]]:
        """Write this stage's share of a state; return where it lies and its files.

        Raises:
            OSError: the disk does not take it.
        """
        from duolora.checkpoints import write_saved  # noqa: PLC0415 - torch, which fast tests do without

        target = Path(self.member.checkpoints_dir)
        folder, files = write_saved(self.share(saved), target, digest=self.digest, paired=self.paired)
        named = (CheckpointFile(name=file.name, sha256=file.sha256, bytes=file.size_bytes) for file in files)
        return folder, tuple(named)

    def read(self) -> Saved | None:
        """Return the checkpoint to go on from.

        Raises:
            CheckpointUnusable: it cannot be read or is of other work.
        """
        from duolora.checkpoints import read_saved  # noqa: PLC0415 - torch, which fast tests do without

        folder = self.member.resume_dir
        return None if folder is None else read_saved(Path(folder), digest=self.digest)


def places_of(run: Run, base_revision: str | None) -> list[Place]:
    """Return the places of all members of a run, in their order."""
    jobs = [member.job_id for member in run.members]
    order = run.jobs
    return [
        Place(member, order.index(member.job_id), jobs.count(member.job_id) > 1, base_revision)
        for member in run.members
    ]


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
        """Return what to go on from: the checkpoints of all members.

        It is held in memory until the first checkpoint of the run's own.
        """
        if not self._has_read:
            self._found, self._has_read = self._read(), True
        return self._found

    def _read(self) -> Saved | None:
        found = [(place.tenant, place.read()) for place in self._places]
        whole = [(tenant, saved) for tenant, saved in found if saved is not None]
        if not whole:
            return None
        if len(whole) < len(found) or len({saved.step for _, saved in whole}) > 1:
            raise CheckpointUnusable("stages that share passes must go on from checkpoints of one step")
        joined = of_tenants(whole)
        log.info("going on from step %d of %d", joined.step, joined.total)
        return joined

    def is_due(self) -> bool:
        """Say whether it is time for a checkpoint, or the parent wants one before the run stops."""
        if self._channel.is_cancelled(self._run.id):
            return False
        return self._channel.is_paused(self._run.id) or monotonic() - self._kept_at >= self._run.checkpoint_every_s

    def keep(self, saved: Saved) -> None:
        """Write the checkpoint of every member, then tell the parent of all; one of a step that it has is left out.

        A disk that does not take one costs that checkpoint, not the run.
        """
        if saved.step == self._kept_step:
            return
        try:
            events = []
            for number, place in enumerate(self._places):
                folder, files = place.write(saved)
                events.append(
                    Checkpointed(
                        id=self._run.id,
                        member=number,
                        step=saved.step,
                        total=saved.total,
                        folder=str(folder),
                        paired=place.paired,
                        files=files,
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
