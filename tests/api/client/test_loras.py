"""The library by the Python client, against the real API process."""

import asyncio

import pytest
import torch
from safetensors.torch import save_file

from api.client import AsyncClient, MissingFormat, ServiceRefused
from tests.api.client.play import finish_loras, submit

pytestmark = pytest.mark.xdist_group("client")


@pytest.fixture
def lora_file(tmp_path):
    path = tmp_path / "ink.safetensors"
    stem = "lora_unet_down_blocks_0_a_to_q"
    save_file({f"{stem}.lora_down.weight": torch.ones(4, 3), f"{stem}.lora_up.weight": torch.ones(2, 4)}, path)
    return path


def test_a_lora_from_its_upload_to_its_end(client, lora_file, tmp_path):
    told = []
    sent = client.upload_lora(
        lora_file, tags=["ink", "old"], role="style", on_upload=lambda done, total: told.append((done, total))
    )
    size = lora_file.stat().st_size
    assert told[-1] == (size, size)
    assert (sent.name, sent.role, sent.tags, sent.rank, sent.source) == ("ink", "style", ("ink", "old"), 4, "upload")
    assert client.lora(sent.id).files[0].format == "kohya"
    named = client.update_lora(sent.id, name="Ink", tags=[])
    assert (named.name, named.tags) == ("Ink", ())
    files = client.download_lora(sent.id, tmp_path / "out")
    assert files == {"kohya": tmp_path / "out" / "ink.safetensors"}
    assert files["kohya"].read_bytes() == lora_file.read_bytes()
    assert list(client.download_lora(sent.id, tmp_path / "one", formats="kohya")) == ["kohya"]
    with pytest.raises(MissingFormat, match="no file in the format diffusers, peft; it has kohya"):
        client.download_lora(sent.id, tmp_path / "none", formats=["kohya", "diffusers", "peft"])
    assert not (tmp_path / "none").exists()
    client.delete_lora(sent.id)
    assert list(client.loras()) == []


def test_what_a_job_made_is_found_and_kept(client, pictures, sessions, objects, tmp_path):
    job = submit(client, pictures)
    finish_loras(sessions, objects)
    [made] = client.loras(job_id=job.id, role=["content", "merged"])
    assert list(client.loras(role="style")) == list(client.loras(tag="nobody")) == []
    kept = client.update_lora(made.id, keep=True)
    assert kept.kept
    client.cancel(job.id)
    client.delete(job.id)
    assert client.download_lora(made.id, tmp_path)["diffusers"].read_bytes() == b"weights"


def test_pages_follow_each_other(client, lora_file):
    sent = [client.upload_lora(lora_file, name=name).id for name in "abc"]
    assert [lora.id for lora in client.loras(page_size=2)] == sent[::-1]


def test_what_is_no_lora_is_refused_by_name(client, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 20)
    with pytest.raises(ServiceRefused) as refusal:
        client.upload_lora(tmp_path / "model.ckpt")
    assert [(each["pointer"], each["code"]) for each in refusal.value.problem["errors"]] == [("/file", "invalid_lora")]


def test_it_can_be_awaited(url, api_key, lora_file, tmp_path):
    async def live():
        async with AsyncClient(url, api_key) as client:
            sent = await client.upload_lora(lora_file)
            assert [lora.id async for lora in client.loras()] == [sent.id]
            return await client.download_lora(sent.id, tmp_path / "out")

    assert asyncio.run(live())["kohya"].read_bytes() == lora_file.read_bytes()
