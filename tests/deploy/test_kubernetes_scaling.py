"""The question that KEDA asks the database: as many workers as there is work that a worker could begin or is at."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import create_engine, func, make_url, text, update

from api.accounts.models import Account
from api.db import make_engine, session_factory, transaction
from api.jobs.models import Job, Stage
from tests.api.factories import claim, make_account, make_job
from tests.support.kustomized import render
from tests.support.vault import VAULT

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
COMPONENT = FOLDER / "components/keda"


class Strict(BaseModel):
    """Fields of KEDA's resources that are used here; there are more."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Named(Strict):
    name: str


class Metadata(Strict):
    name: str
    namespace: str


class Policy(Strict):
    type: Literal["Pods", "Percent"]
    value: Annotated[int, Field(gt=0)]
    periodSeconds: Annotated[int, Field(gt=0, le=1800)]


class Rules(Strict):
    stabilizationWindowSeconds: Annotated[int, Field(ge=0, le=3600)]
    policies: list[Policy]


class Behavior(Strict):
    scaleDown: Rules


class AutoscalerConfig(Strict):
    behavior: Behavior


class Advanced(Strict):
    horizontalPodAutoscalerConfig: AutoscalerConfig


class Question(Strict):
    query: str
    targetQueryValue: Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")]


class Trigger(Strict):
    type: Literal["postgresql"]
    authenticationRef: Named
    metadata: Question


class Scaling(Strict):
    scaleTargetRef: Named
    minReplicaCount: Annotated[int, Field(ge=0)]
    maxReplicaCount: Annotated[int, Field(ge=1)]
    pollingInterval: Annotated[int, Field(ge=1)]
    cooldownPeriod: Annotated[int, Field(ge=0)]
    advanced: Advanced
    triggers: Annotated[list[Trigger], Field(min_length=1)]


class ScaledObject(Strict):
    """https://keda.sh/docs/latest/reference/scaledobject-spec/."""

    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: Scaling


class FromSecret(Strict):
    parameter: Literal["connection"]
    name: str
    key: str


class Authentication(Strict):
    secretTargetRef: list[FromSecret]


class TriggerAuthentication(Strict):
    """https://keda.sh/docs/latest/concepts/authentication/."""

    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["TriggerAuthentication"]
    metadata: Metadata
    spec: Authentication


MODELS: dict[str, type[Strict]] = {"ScaledObject": ScaledObject, "TriggerAuthentication": TriggerAuthentication}


def custom_resources() -> dict[str, Any]:
    found = [each for each in render(FOLDER / "overlays/gpu") if each["apiVersion"].startswith("keda.sh/")]
    return {each["kind"]: MODELS[each["kind"]].model_validate(each) for each in found}


@pytest.fixture
def sessions(database_url):
    engine = make_engine(database_url, pool_size=4)
    yield session_factory(engine, VAULT)
    engine.dispose()


@pytest.fixture
def wanted(database_url, sessions):
    """Ask as KEDA does: as a role that has what the component's script gives it."""
    [trigger] = custom_resources()["ScaledObject"].spec.triggers
    script = "".join(line for line in (COMPONENT / "scaler-role.sql").read_text().splitlines(True) if line[:2] != "--")
    with transaction(sessions) as session:
        session.execute(text(script.replace(":'password'", "'0f3c9b'")))
    scaler = create_engine(make_url(database_url).set(username="duolora_scaler", password="0f3c9b"))

    def ask():
        with scaler.connect() as connection:
            [[count]] = connection.execute(text(trigger.metadata.query)).all()
        return count

    yield ask
    scaler.dispose()
    with transaction(sessions) as session:
        session.execute(text("DROP OWNED BY duolora_scaler"))
        session.execute(text("DROP ROLE duolora_scaler"))


def change(sessions, model, job_id=None, **values):
    with transaction(sessions) as session:
        statement = update(model).values(**values)
        session.execute(statement if job_id is None else statement.where(model.id == job_id))


def test_keda_knows_every_field_and_finds_what_is_named():
    found = custom_resources()
    spec = found["ScaledObject"].spec
    assert spec.triggers[0].authenticationRef.name == found["TriggerAuthentication"].metadata.name
    [worker] = [
        each
        for each in render(FOLDER / "overlays/gpu")
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", spec.scaleTargetRef.name)
    ]
    assert "replicas" not in worker["spec"]  # two would set it by turns
    assert spec.minReplicaCount <= spec.maxReplicaCount


def test_without_work_no_worker_is_wanted(wanted):
    assert wanted() == 0


def test_stages_that_wait_and_workers_that_are_busy_count(sessions, wanted):
    account = make_account(sessions)
    make_job(sessions, account)
    assert wanted() == 2  # both LoRAs; the merge waits for them
    claim(sessions, "w1")
    assert wanted() == 2
    claim(sessions, "w2")
    assert wanted() == 2


def test_a_worker_that_trains_both_in_one_pass_counts_once(sessions, wanted):
    make_job(sessions, make_account(sessions))
    claim(sessions, "w1", pairs=True)
    assert wanted() == 1


def test_what_may_not_begin_now_wants_no_worker(sessions, wanted):
    account = make_account(sessions)
    canceled, late = make_job(sessions, account), make_job(sessions, account)
    change(sessions, Job, canceled, cancel_requested_at=func.now())
    change(sessions, Job, late, deadline_at=func.now() - timedelta(seconds=1))
    assert wanted() == 0
    make_job(sessions, account)
    assert wanted() == 2
    change(sessions, Stage, runnable_at=func.now() + timedelta(hours=1))
    assert wanted() == 0


def test_an_account_at_its_limit_wants_no_more_workers(sessions, wanted):
    account = make_account(sessions)
    for _ in range(3):
        make_job(sessions, account)
    assert wanted() == 6
    change(sessions, Account, account, max_running_jobs=1)
    assert wanted() == 2
    claim(sessions, "w1")
    assert wanted() == 2  # its worker, and the other LoRA of the same job
    make_job(sessions, make_account(sessions, "other"))
    assert wanted() == 4


def test_as_many_as_are_wanted_find_something_to_do(sessions, wanted):
    limited = make_account(sessions, "limited")
    for account in (limited, limited, limited, make_account(sessions, "free")):
        make_job(sessions, account)
    change(sessions, Account, limited, max_running_jobs=2)
    count = wanted()
    claims = [claim(sessions, f"w{number}") for number in range(count + 1)]
    assert (count, claims[-1]) == (6, None)
    assert None not in claims[:-1]


def test_the_role_sees_no_more_than_it_needs(sessions, wanted, database_url):
    scaler = create_engine(make_url(database_url).set(username="duolora_scaler", password="0f3c9b"))
    for statement in ("SELECT request FROM jobs", "SELECT * FROM accounts", "UPDATE stages SET priority = 1"):
        with scaler.connect() as connection, pytest.raises(Exception, match="permission denied"):
            connection.execute(text(statement))
    scaler.dispose()
