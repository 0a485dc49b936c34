import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, update

from api.db import transaction
from api.errors import NotFound
from api.jobs import listing
from api.jobs.models import Job, StageAttempt
from api.jobs.plan import JobKind
from api.jobs.states import JobState
from tests.api.factories import cancel, claim, fail, finish, make_account, make_all_due, make_job


@pytest.fixture
def account(sessions):
    return make_account(sessions)


def page(sessions, account, after=None, limit=2, **filters):
    with transaction(sessions) as session:
        jobs, following = listing.list_jobs(session, account_id=account, after=after, limit=limit, **filters)
        return [job.id for job in jobs], following


def test_pages_are_newest_first_and_end(sessions, account):
    made = [make_job(sessions, account) for _ in range(5)]
    seen, after = [], None
    sizes = []
    while True:
        ids, after = page(sessions, account, after)
        seen += ids
        sizes.append(len(ids))
        if after is None:
            break
    assert seen == made[::-1]
    assert sizes == [2, 2, 1]


def test_a_full_last_page_has_no_successor(sessions, account):
    for _ in range(2):
        make_job(sessions, account)
    assert page(sessions, account)[1] is None
    assert page(sessions, make_account(sessions, "theirs")) == ([], None)


def test_jobs_that_come_meanwhile_neither_repeat_nor_hide_any(sessions, account):
    made = [make_job(sessions, account) for _ in range(4)]
    first, after = page(sessions, account)
    new = make_job(sessions, account)
    second, end = page(sessions, account, after)
    assert first + second == made[::-1]
    assert end is None
    assert page(sessions, account)[0][0] == new


def test_jobs_of_one_instant_are_told_apart(sessions, account):
    made = {make_job(sessions, account) for _ in range(5)}
    with transaction(sessions) as session:
        session.execute(update(Job).values(created_at=datetime(2026, 1, 1, tzinfo=UTC)))
    seen, after = page(sessions, account)
    while after is not None:
        ids, after = page(sessions, account, after)
        seen += ids
    assert len(seen) == 5
    assert set(seen) == made


def test_the_filter_holds_across_pages(sessions, account):
    made = [make_job(sessions, account) for _ in range(5)]
    for job_id in made[::2]:
        cancel(sessions, account, job_id)
    filters = {"states": [JobState.CANCELED], "kinds": [JobKind.PERSONALIZE]}
    first, after = page(sessions, account, **filters)
    second, end = page(sessions, account, after, **filters)
    assert first + second == made[::2][::-1]
    assert end is None


def test_several_states_are_one_list_in_order_and_a_cursor_outlives_the_filter(sessions, account):
    made = [make_job(sessions, account) for _ in range(4)]
    claim(sessions)  # the first is running
    cancel(sessions, account, made[2])
    first, after = page(sessions, account, states=[JobState.RUNNING, JobState.CANCELED], limit=1)
    assert first == [made[2]]
    assert page(sessions, account, after, states=[JobState.RUNNING, JobState.CANCELED]) == ([made[0]], None)
    assert page(sessions, account, after) == ([made[1], made[0]], None)
    assert page(sessions, account, states=[JobState.EXPIRED]) == ([], None)


def test_reading_needs_the_right_account(sessions, account):
    job_id = make_job(sessions, account)
    with transaction(sessions) as session:
        assert listing.read_job(session, account_id=account, job_id=job_id).id == job_id
        theirs = make_account(sessions, "theirs")
        for whose, which in ((theirs, job_id), (account, uuid.uuid4())):
            with pytest.raises(NotFound):
                listing.read_job(session, account_id=whose, job_id=which)
            with pytest.raises(NotFound):
                listing.glance_at_job(session.connection(), account_id=whose, job_id=which)


def test_listing_costs_the_same_number_of_queries_however_many_jobs(sessions, account, engine):
    counts = []
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    for total in (1, 6):
        while len(page(sessions, account, limit=50)[0]) < total:
            make_job(sessions, account)
        statements.clear()
        page(sessions, account, limit=50)
        counts.append(len(statements))
    assert counts[0] == counts[1]


class TestWorkerSeconds:
    """What workers have spent on a job."""

    @pytest.fixture
    def worked(self, sessions, account):
        def worked(job_id, owner=account):
            with transaction(sessions) as session:
                return listing.read_job(session, account_id=owner, job_id=job_id).worker_seconds

        return worked

    @pytest.fixture
    def took(self, sessions):
        """Make an ended attempt one that took so long; its start stays."""

        def took(claimed, seconds):
            with transaction(sessions) as session:
                one = session.get_one(StageAttempt, (claimed.stage_id, claimed.attempt))
                assert one.finished_at is not None
                one.finished_at = one.started_at + timedelta(seconds=seconds)

        return took

    def test_there_is_none_before_the_first_attempt(self, sessions, account, worked):
        assert worked(make_job(sessions, account)) == 0

    def test_attempts_at_all_stages_add_up_failed_ones_too(self, sessions, account, worked, took):
        job_id = make_job(sessions, account)
        first = claim(sessions)
        fail(sessions, first, retry_after=timedelta(0))
        make_all_due(sessions)
        second = claim(sessions)
        finish(sessions, second)
        third = claim(sessions)
        finish(sessions, third)
        assert [(each.name, each.attempt) for each in (first, second, third)] == [
            ("content_lora", 1),
            ("content_lora", 2),
            ("style_lora", 1),
        ]
        for each, seconds in ((first, 10), (second, 2.5), (third, 3)):
            took(each, seconds)
        assert worked(job_id) == 15.5

    def test_one_that_runs_counts_up_to_now(self, sessions, account, worked):
        job_id = make_job(sessions, account)
        claim(sessions)
        with transaction(sessions) as session:
            session.execute(update(StageAttempt).values(started_at=StageAttempt.started_at - timedelta(minutes=5)))
        first = worked(job_id)
        assert 300 <= first < worked(job_id)

    def test_both_trainings_of_a_job_in_one_run_count_once(self, sessions, account, worked, took):
        job_id = make_job(sessions, account)
        claimed = claim(sessions, pairs=True)
        for each, seconds in zip(claimed.all, (30, 40), strict=True):
            finish(sessions, each)
            took(each, seconds)
        assert worked(job_id) == 40

    def test_two_workers_at_once_count_both(self, sessions, account, worked, took):
        job_id = make_job(sessions, account)
        for each, seconds in ((claim(sessions, "w1"), 30), (claim(sessions, "w2"), 40)):
            finish(sessions, each)
            took(each, seconds)
        assert worked(job_id) == 70

    def test_a_run_that_jobs_share_is_divided_by_their_number(self, sessions, worked, took):
        owners = [make_account(sessions, name) for name in "abcd"]
        jobs = {make_job(sessions, owner): owner for owner in owners}
        claimed = claim(sessions, pairs=True, jobs_at_once=4)
        assert len(claimed.by_job) == 4
        for each in claimed.all:
            finish(sessions, each)
            took(each, 40)
        assert [worked(job_id, owner) for job_id, owner in jobs.items()] == [10] * 4
