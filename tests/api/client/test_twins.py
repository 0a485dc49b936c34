"""The client that is awaited, and jobs that are asked themselves, against the real API process."""

import asyncio

import pytest

from api.client import AsyncClient, JobNotSucceeded
from tests.api.client.play import finish, submit

pytestmark = pytest.mark.xdist_group("client")


@pytest.fixture
def address(url, api_key):
    return url, api_key


@pytest.fixture
def worker(sessions, objects):
    """Plays one for a job that ends with this picture."""
    return lambda job, content: finish(sessions, objects, job, content)


def test_a_job_is_awaited_from_submission_to_files(address, pictures, worker, tmp_path):
    seen, sent, fetched = [], [], []

    async def take(job):
        seen.append(job.state)

    async def work():
        async with AsyncClient(*address) as client:
            job = await client.personalize(
                content=pictures[:2],
                style=pictures[2:],
                subject_class="teapot",
                on_upload=lambda *progress: sent.append(progress),
            )
            following = asyncio.create_task(all_of(job.stream()))
            await asyncio.to_thread(worker, job, b"picture")
            done = await job.wait(on_progress=take)
            files = await done.download(tmp_path / "out", on_download=lambda *progress: fetched.append(progress))
            events = await following
            return done, files, events, [each.id async for each in client.jobs()]

    done, files, events, ids = asyncio.run(work())
    assert (done.state, seen[-1]) == ("succeeded", "succeeded")
    assert files["preview"].read_bytes() == b"picture"
    assert (events[0].type, events[-1].type) == ("job.queued", "job.succeeded")
    assert ids == [done.id]
    total = sum(path.stat().st_size for path in pictures)
    assert sent[-1] == (total, total)
    assert [done for done, _ in sent] == sorted(done for done, _ in sent)
    assert fetched[-1] == (7, 7)


async def all_of(items):
    return [item async for item in items]


def test_a_job_that_ends_otherwise_raises_for_both(address, client, pictures):
    job = submit(client, pictures)
    assert job.cancel().state == "canceled"
    with pytest.raises(JobNotSucceeded, match="canceled"):
        job.wait()
    assert [event.type for event in job.stream()][-1] == "job.canceled"
    assert job.read().state == "canceled"
    assert list(job.logs()) == job.attempts() == []

    async def wait():
        async with AsyncClient(*address) as other:
            await (await other.job(job.id)).wait()

    with pytest.raises(JobNotSucceeded, match="canceled"):
        asyncio.run(wait())
    assert job.retry().cancel().delete().state == "deleted"


def test_a_stream_that_nobody_reads_on_is_let_go(client, pictures):
    job = submit(client, pictures)
    events = job.stream()
    assert next(events).type == "job.queued"
    events.close()
    job.cancel()
    pool = client.wire.api._transport._pool
    assert all(connection.is_idle() for connection in pool.connections)


def test_recipes_are_those_of_the_installation(client):
    assert client.recipes().default_base_model == "tiny"
