"""Pictures that come before their job, by the client and its twin."""

import asyncio
import zipfile

import pytest

from api.client import AsyncClient, ServiceRefused

pytestmark = pytest.mark.xdist_group("client")


def test_pictures_may_come_first(client, pictures):
    heard = []
    sent = [client.upload(path, on_upload=lambda *told: heard.append(told)) for path in pictures[:2]]
    assert heard[-1][0] == heard[-1][1] == pictures[1].stat().st_size
    by_link = client.upload_by_link(pictures[2])
    assert {upload.state for upload in (*sent, by_link)} == {"ready"}
    assert client.read_upload(by_link.id) == by_link
    ids = {"content": [upload.id for upload in sent], "style": [by_link.id]}
    found = client.check(**ids, params={"rank": 3})
    assert (found.ok, found.config["content"]["rank"]) == (True, 3)
    job = client.submit(**ids, params={"rank": 3}, idempotency_key="first")
    assert client.submit(**ids, params={"rank": 3}, idempotency_key="first").id == job.id
    client.delete_upload(by_link.id)
    with pytest.raises(ServiceRefused, match="style_upload_ids/0"):
        client.submit(**ids)
    assert client.submit(style=ids["content"], params={"kind": "train"}).kind == "train"


def test_the_twin_does_the_same(url, api_key, pictures):
    async def through():
        async with AsyncClient(url, api_key) as client:
            first, second = await client.upload(pictures[0]), await client.upload_by_link(pictures[1])
            return await client.submit(content=[first.id], style=[second.id])

    assert asyncio.run(through()).state == "queued"


def test_pictures_may_come_in_one_zip(client, pictures, tmp_path):
    path = tmp_path / "job.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for picture, name in zip(pictures, ("content/1.png", "content/2.png", "style/1.png"), strict=True):
            archive.write(picture, name)
    checked = client.check_archive(path, params={"rank": 3})
    assert (checked.ok, checked.config["content"]["rank"], list(client.jobs())) == (True, 3, [])
    job = client.submit_archive(path, params={"rank": 3})
    assert client.wire.api.get(f"/jobs/{job.id}").json()["params"]["content"]["rank"] == 3


def test_files_may_be_looked_at_before_they_are_submitted(client, pictures):
    heard = []
    given = {"content": pictures[:2], "style": pictures[2:], "params": {"subject_class": "cat", "rank": 3}}
    found = client.check_files(**given, on_upload=lambda *told: heard.append(told))
    assert (found.ok, found.config["content"]["rank"], len(found.images)) == (True, 3, 3)
    assert heard[-1][0] == heard[-1][1] == sum(path.stat().st_size for path in pictures)
    assert list(client.jobs()) == []
    job = client.submit_files(**given, idempotency_key="files")
    assert client.submit_files(**given, idempotency_key="files").id == job.id
    with pytest.raises(ServiceRefused, match="/params/rank"):
        client.check_files(**given | {"params": {"rank": 100_000}})
