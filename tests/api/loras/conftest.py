"""Fixtures of the library's tests: an ended job that made LoRAs, and the janitor."""

import hashlib
import threading
from dataclasses import dataclass
from datetime import timedelta

import pytest
import torch
from safetensors.torch import save
from sqlalchemy import select, update

from api.accounts.models import Account
from api.db import transaction
from api.jobs import repository
from api.jobs.repository import StoredArtifact
from api.loras.models import Lora, LoraState
from api.object_keys import artifact_key
from tests.api.factories import claim, fail, held
from worker.dispatcher.janitor import Janitor
from worker.settings import DispatcherSettings

SUFFIXES = {"": "safetensors", "_kohya": "kohya.safetensors"}


def lora_file(stem="unet.down_blocks.0.a.to_q", down="lora_A", up="lora_B", rank=4, **metadata):
    """The bytes of a small LoRA."""
    tensors = {f"{stem}.{down}.weight": torch.ones(rank, 3), f"{stem}.{up}.weight": torch.ones(2, rank)}
    return save(tensors, metadata)


@dataclass(frozen=True)
class Library:
    """The real tables and the real store behind the service."""

    sessions: object
    store: object

    def account(self, name="mine"):
        with self.sessions() as session:
            return session.scalars(select(Account).where(Account.name == name)).one()

    def rows(self):
        with self.sessions() as session:
            return session.scalars(select(Lora).order_by(Lora.created_at, Lora.role)).all()

    def objects(self, under="loras"):
        return self.store.keys(f"accounts/{self.account().id}/{under}/")

    def pass_time(self, **time):
        """Let the times at which places are looked at come sooner."""
        with transaction(self.sessions) as session:
            session.execute(update(Lora).values(settle_at=Lora.settle_at - timedelta(**time)))

    def check(self):
        """Everything that is shown is there, and whole."""
        for row in self.rows():
            if row.state is LoraState.READY:
                for file in row.all_files:
                    assert hashlib.sha256(self.store.get_bytes(file.key)).hexdigest() == file.sha256


@pytest.fixture
def library(sessions, store):
    return Library(sessions, store)


@pytest.fixture
def janitor(service_environment, sessions, store, monkeypatch):
    for name, value in service_environment.items():
        monkeypatch.setenv(name, value)
    return Janitor(DispatcherSettings(), sessions=sessions, store=store, stop=threading.Event())


@pytest.fixture
def train(sessions, store):
    """Play the worker of a training: both formats in the store, then the fenced finish."""

    def make(claimed):
        made = []
        for infix, suffix in SUFFIXES.items():
            data = f"{claimed.name}{infix}".encode()
            key = artifact_key(claimed.account_id, claimed.job_id, claimed.name, claimed.attempt, f"lora.{suffix}")
            store.put_bytes(key, data, "application/octet-stream")
            made.append(
                StoredArtifact(
                    name=f"{claimed.name}{infix}",
                    filename=f"{claimed.name}.{suffix}",
                    key=key,
                    sha256=hashlib.sha256(data).hexdigest(),
                    bytes=len(data),
                    content_type="application/octet-stream",
                )
            )
        with transaction(sessions) as session:
            repository.finish_stage(session, **held(claimed), artifacts=made, timings={})
        return made

    return make


@pytest.fixture
def made(caller, sessions, train):
    """The LoRA that an ended job made, as its owner reads it."""
    caller.submit(params={"subject_class": "cat", "rank": 6})
    train(claim(sessions))
    fail(sessions, claim(sessions))
    [lora] = caller.get("/loras").json()["items"]
    return lora
