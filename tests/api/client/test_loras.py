"""The library and uploads by the Python client, against the real API process."""

import zipfile

import pytest

from api.client import ServiceRefused
from worker.mock_engine import lora_file

pytestmark = pytest.mark.xdist_group("client")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "fox.safetensors"
    path.write_bytes(lora_file(kohya=False))
    return path


def test_a_lora_from_its_sending_to_its_end(client, file, tmp_path):
    sent = []
    made = client.upload_lora(file, tags=["fox", "own"], role="content", on_upload=lambda *bytes: sent.append(bytes))
    assert (made.name, made.role, made.rank, made.source, made.kept) == ("fox", "content", 4, "upload", True)
    assert sent[-1] == (file.stat().st_size, file.stat().st_size)
    other = client.upload_lora(file, name="wolf", trigger="sbu wolf")
    assert [lora.id for lora in client.loras(page_size=1)] == [other.id, made.id]
    assert [lora.id for lora in client.loras(tag=["own", "fox"], role="content")] == [made.id]
    assert list(client.loras(role=["style", "merged"])) == []
    changed = client.update_lora(made.id, name="vixen", tags=[])
    assert (changed.name, changed.tags) == ("vixen", ())
    assert client.lora(made.id).name == "vixen"
    files = client.download_lora(made.id, tmp_path / "out")
    assert {name: path.read_bytes() for name, path in files.items()} == {made.files[0].format: file.read_bytes()}
    with pytest.raises(ValueError, match="no file in the format kohya"):
        client.download_lora(made.id, tmp_path, format="kohya")
    client.delete_lora(made.id)
    assert [lora.id for lora in client.loras()] == [other.id]


def test_pictures_may_come_first(client, pictures):
    sent = [client.upload(path) for path in pictures[:2]]
    by_link = client.upload_by_link(pictures[2])
    assert {upload.state for upload in (*sent, by_link)} == {"ready"}
    assert client.read_upload(by_link.id) == by_link
    wishes = {"content": sent, "style": [by_link], "subject_class": "cat", "rank": 3}
    job = client.personalize(**wishes, idempotency_key="first")
    assert client.personalize(**wishes, idempotency_key="first").id == job.id
    with pytest.raises(ValueError, match="upload all of them, or none"):
        client.personalize(**wishes | {"style": pictures[2:]})
    client.delete_upload(by_link.id)
    with pytest.raises(ServiceRefused, match="style_upload_ids/0"):
        client.personalize(**wishes)
    job.cancel()


def test_pictures_may_come_in_one_zip(client, pictures, tmp_path):
    path = tmp_path / "job.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for picture, name in zip(pictures, ("content/1.png", "content/2.png", "style/1.png"), strict=True):
            archive.write(picture, name)
    job = client.submit_archive(path, rank=3)
    assert client.wire.api.get(f"/jobs/{job.id}").json()["params"]["content"]["rank"] == 3
    job.cancel()
