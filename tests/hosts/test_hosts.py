"""Two workers on two hosts against one Postgres, Valkey and S3, and what a host may do that is cut off."""

import pytest

from deploy.local.demo import shipped_samples
from duolora.lora.read import read_lora
from tests.chaos.callers import PERSONALIZED
from tests.chaos.judge import TERMINAL_EVENTS
from tests.chaos.recipes import APART

pytestmark = [pytest.mark.xdist_group("hosts"), pytest.mark.timeout(420)]

LONG = {"content": 14, "style": 14, "merge": 2}
SHORT = {"content": 4, "style": 4, "merge": 2}
EVERYTHING = {
    "jobs": "id = %s",
    "stages": "job_id = %s",
    "artifacts": "job_id = %s",
    "events": "job_id = %s",
    "job_logs": "job_id = %s",
    "stage_attempts": "stage_id IN (SELECT id FROM stages WHERE job_id = %s)",
    "webhook_deliveries": "job_id = %s",
}
"""All that the database knows of a job: tables, and which of their rows."""


def submit(site, steps):
    samples = shipped_samples()
    return site.client.personalize(
        content=samples.content[:2],
        style=samples.style[:2],
        subject_class=samples.subject_class,
        style_captions=samples.style_captions[:2],
        recipe=APART,
        steps=steps,
    ).id


def rows_of(site, job_id):
    return {
        table: sorted(site.rows(f"SELECT * FROM {table} WHERE {which}", job_id), key=str)  # noqa: S608 - from the table above
        for table, which in EVERYTHING.items()
    }


def attempts(site, job_id, stage):
    return site.rows(
        "SELECT a.attempt, a.worker_id, a.outcome, a.failure_class, a.resumed_step FROM stage_attempts a"
        " JOIN stages s ON s.id = a.stage_id WHERE s.job_id = %s AND s.name = %s ORDER BY a.attempt",
        job_id,
        stage,
    )


def succeeded(site, job_id, within_s=120):
    site.wait(f"end of job {job_id}", lambda: site.client.job(job_id).state not in {"queued", "running"}, within_s)
    job = site.client.job(job_id)
    assert job.state == "succeeded", job
    return job


def test_a_host_that_was_cut_off_finds_its_stage_done_by_another_and_changes_nothing(site, tmp_path):
    job_id = submit(site, LONG)
    [held] = site.wait(
        "checkpoint of a training under way",
        lambda: site.rows(
            "SELECT name FROM stages WHERE job_id = %s AND worker_id = 'east' AND state = 'running'"
            " AND (checkpoint->>'step')::int BETWEEN 1 AND 10",
            job_id,
        ),
        60,
    )
    site.hosts["east"].pull()

    job = succeeded(site, job_id)
    before = rows_of(site, job_id)
    assert not site.says("east", "stage ended")
    site.hosts["east"].plug()
    site.wait("word of the lost lease", lambda: site.says("east", "stage ended: abandon"), 60)
    site.wait("rejoined host", lambda: site.is_idle("east"), 60)

    assert rows_of(site, job_id) == before
    first, second = attempts(site, job_id, held["name"])
    assert (first["worker_id"], first["outcome"]) == ("east", "lease_expired")
    assert (second["worker_id"], second["outcome"]) == ("west", "succeeded")
    assert second["resumed_step"] >= 1
    assert [row["type"] for row in before["events"] if row["type"] in TERMINAL_EVENTS] == ["job.succeeded"]
    assert {row["name"] for row in before["artifacts"]} == PERSONALIZED[0].results
    files = site.client.download(job, tmp_path)
    assert set(files) == PERSONALIZED[0].results
    for name in ("content_lora", "style_lora", "merged_diffusers"):
        assert read_lora(files[name]).layers
    site.client.delete(job_id)
    assert not site.objects(job_id)  # what came late goes with the rest


def test_a_host_that_cannot_reach_the_store_spoils_one_attempt_and_takes_no_more(site):
    """Although it is free all the time, and others are not."""
    for name in site.workers:
        site.wait(f"idle worker {name}", lambda name=name: site.is_idle(name), 60)
    site.hosts["west"].lose(site.store)
    job_ids = [submit(site, SHORT), submit(site, SHORT | {"content": 5})]
    for job_id in job_ids:
        succeeded(site, job_id)
    spoilt = site.rows(
        "SELECT outcome, failure_class FROM stage_attempts WHERE worker_id = 'west' AND stage_id IN"
        " (SELECT id FROM stages WHERE job_id = ANY(%s))",
        job_ids,
    )
    assert [(row["outcome"], row["failure_class"]) for row in spoilt] == [("retried", "environment")]
    assert not site.is_idle("west")
    site.hosts["west"].find(site.store)
    site.wait("host that works again", lambda: site.is_idle("west"), 60)


def test_a_host_without_a_broker_finds_its_work_in_the_database(site):
    site.hosts["east"].pull()
    site.hosts["west"].lose(site.broker)
    job = succeeded(site, submit(site, SHORT))
    taken = site.rows(
        "SELECT DISTINCT worker_id FROM stage_attempts WHERE stage_id IN (SELECT id FROM stages WHERE job_id = %s)",
        job.id,
    )
    assert [row["worker_id"] for row in taken] == ["west"]
