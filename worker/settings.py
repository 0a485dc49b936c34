"""Settings of the worker and of the dispatcher, from the environment. Built in the entry points and passed down."""

from __future__ import annotations

import math
import os
import re
import secrets
import socket
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.jobs.engines import EngineName
from api.settings import (
    MIB,
    DatabaseSettings,
    MetricsSettings,
    ProcessSettings,
    RedisSettings,
    SealSettings,
    StoreSettings,
    TracingSettings,
    WebhookSettings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET_VARIABLES = re.compile(r"^(DATABASE_|REDIS_|S3_|WEBHOOK_|AWS_)|SECRET|PASSWORD")
"""Variables that the engine process has no use for, and so does not get."""

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def _worker_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class EngineSettings(BaseSettings):
    """The engine process: ENGINE_COMMAND, ENGINE_THREADS, ENGINE_*_TIMEOUT_S, ENGINE_*_GRACE_S."""

    model_config = SettingsConfigDict(env_prefix="ENGINE_", frozen=True)

    command: tuple[str, ...] = (sys.executable, "-m", "worker.engine")
    """JSON list. Anything that speaks the protocol of `worker.wire`."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads of the engine's arithmetic (OMP_NUM_THREADS). None: one less than the cores it may use, at least one.

    One core stays with the rest of the stack, because OpenMP threads wait for each other by spinning: on 2 cores a step
    of the tiny base took 0.18 s with 2 threads while nothing else ran, but seconds as soon as anything did, against
    0.22 and 0.29 s with one thread; threads that sleep instead took 0.42 and 0.30 s. Where several workers share a
    machine without a GPU, give each its share of the cores.
    """
    start_timeout_s: float = Field(180, gt=0)
    """From its start to `ready`: importing the libraries takes seconds, on a cold disk many."""
    warm_timeout_s: float = Field(900, gt=0)
    """Loading the base model; the first time it may come over the network."""
    cancel_grace_s: float = Field(8, gt=0)
    """From the request to stop a run to TERM."""
    stall_s: float = Field(300, gt=0)
    """A run that gets no further for so long is stuck: its process is killed. Where the base is yet to be loaded,
    it has `warm_timeout_s` before its first report."""
    memory_slack_bytes: int = Field(512 * MIB, ge=0)
    """A process that holds so much more after a stage than with its base alone is replaced."""
    term_grace_s: float = Field(3, gt=0)
    """From TERM to KILL. A worker that is told to exit needs up to both, and a little more: its own grace."""

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the engine process: the inherited one without secrets, threads bounded."""
        kept = {name: value for name, value in inherited.items() if not SECRET_VARIABLES.search(name)}
        threads = str(self.threads or max(1, usable_cores() - 1))
        if self.threads is not None:
            return kept | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | kept


class WorkerSettings(ProcessSettings):
    """The worker: WORKER_*, BASE_MODELS, LOG_LEVEL, and the parts it shares with the API."""

    worker_id: str = Field(default_factory=_worker_name, min_length=1, max_length=200)
    """Name under which this process holds leases; unique among running workers."""
    worker_scratch_dir: Path = Path(tempfile.gettempdir()) / "duolora-worker"
    """Folder for files of running stages; emptied after each."""
    worker_lease_s: float = Field(30, gt=0)
    """How long a stage stays this worker's without a heartbeat."""
    worker_heartbeat_s: float = Field(10, gt=0)
    worker_progress_s: float = Field(1, gt=0)
    """Least time between two progress writes of a stage; also how soon a request to cancel is seen."""
    worker_event_s: float = Field(2, gt=0)
    """Least time between two events that tell of a stage's progress."""
    worker_checkpoint_s: float = Field(20, gt=0, le=30)
    """Time between two checkpoints of a stage: the most work that an accident costs."""
    worker_pairs: bool = True
    """Whether both LoRAs of a job may be trained in one pass when no other worker is free."""
    worker_jobs_at_once: int = Field(1, ge=1, le=64)
    """Most jobs whose trainings may share passes, when more alike ones wait than other workers are free for; where the
    memory profile allows it. Every job takes memory for its samples and its LoRAs."""
    worker_grace_s: float = Field(25, gt=0)
    """From TERM to its exit: checkpointing, storing that, giving the stage back."""
    worker_poll_s: float = Field(5, gt=0)
    """Longest wait for a hint before the database is asked anyway: what a broken broker costs."""
    worker_patience_s: float = Field(120, gt=0)
    """How long storing results is tried again while the database or the object store is away."""
    worker_engine: EngineName = EngineName.DUOLORA
    """`mock`: no engine process is started and only mock jobs are taken, so that an installation for the tests of
    others needs neither torch nor a base. Every worker takes those, too."""
    worker_warm_base: str | None = None
    """Name of the base loaded before the first job. None: the first of BASE_MODELS. Empty: none."""
    base_models: dict[str, str] = Field(default={"tiny": "tiny"}, min_length=1)
    """JSON object: name -> location (folder, file or hub id); the API has the same."""
    log_level: str = "INFO"

    engine: EngineSettings = Field(default_factory=EngineSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)

    @property
    def lease(self) -> timedelta:
        """`worker_lease_s` as a duration."""
        return timedelta(seconds=self.worker_lease_s)

    @property
    def mocks_only(self) -> bool:
        """Whether it does nothing but mock jobs."""
        return self.worker_engine is EngineName.MOCK

    @property
    def warm_location(self) -> str | None:
        """Location of the base to load first, None for none."""
        if self.worker_warm_base == "":
            return None
        return self.base_models[self.worker_warm_base or next(iter(self.base_models))]


class DispatcherSettings(ProcessSettings):
    """The dispatcher: DISPATCHER_*, LOG_LEVEL, and the parts it shares with the API."""

    dispatcher_relay_poll_s: float = Field(1, gt=0)
    """Longest wait for a notification before the outbox is read anyway."""
    dispatcher_reap_s: float = Field(5, gt=0)
    """Time between two looks for expired leases."""
    dispatcher_republish_s: float = Field(10, gt=0)
    """Time between two looks for runnable stages that nobody took."""
    dispatcher_republish_after_s: float = Field(15, gt=0)
    """Age at which a runnable stage is hinted at again."""
    dispatcher_deliver_s: float = Field(1, gt=0)
    """Time between two looks for webhooks that are due."""
    dispatcher_standby_s: float = Field(2, gt=0)
    """How often a dispatcher asks for a duty that another one holds."""
    dispatcher_janitor_s: float = Field(60, gt=0)
    """Time between two looks for what retention has ended."""
    dispatcher_retention_days: float = Field(30, gt=0)
    """How long an ended job is kept, with all its files."""
    dispatcher_checkpoint_keep_h: float = Field(24, ge=0)
    """How long the checkpoints of an ended job are kept for a retry."""
    dispatcher_log_days: float = Field(30, gt=0)
    """How long the log of a webhook delivery is kept."""
    log_level: str = "INFO"

    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    seals: SealSettings = Field(default_factory=SealSettings)
    webhooks: WebhookSettings = Field(default_factory=WebhookSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, and its control group's quota if any."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP_CPU_MAX.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
