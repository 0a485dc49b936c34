"""The library: what a job made is merged anew in two clicks, kept, named, tagged, fetched, uploaded and deleted."""

import hashlib
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.console.gestures import read_job, state

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]

JOB_ENDS_MS = 120_000


@pytest.fixture(scope="module")
def http(stack):
    key = {"Authorization": f"Bearer {stack.owner.api_key}"}
    with httpx.Client(base_url=stack.api_url, headers=key, timeout=60) as connection:
        yield connection


@pytest.fixture
def uploaded(client, http, tmp_path, ended):
    """The id of a subject's LoRA that was sent in; it is gone in the end."""
    words = {"name": "Fox of the woods", "role": "content", "base_model": "tiny", "trigger": "sbu animal"}
    with client.download(ended, tmp_path)["content_lora"].open("rb") as file:
        made = http.post("/loras", data=words, files={"file": file}).raise_for_status().json()
    yield made["id"]
    http.delete(f"/loras/{made['id']}")


def made_by(http, job, role):
    """The LoRA that a job made."""
    return http.get("/loras", params={"role": role, "job_id": job.id}).json()["items"][0]


def row(page, name):
    return page.get_by_role("listitem").filter(has=page.get_by_role("heading", name=name, exact=True))


def download(page, button):
    with page.expect_download() as waiting:
        button.click()
    return hashlib.sha256(Path(waiting.value.path()).read_bytes()).hexdigest()


def test_two_loras_are_merged_in_two_clicks(window, http, uploaded, ended):
    style = made_by(http, ended, "style")
    page = window.open("/#/library", with_key=True)
    row(page, "Fox of the woods").get_by_role("button", name="Merge with").click()
    expect(page.get_by_text("Merging Fox of the woods: choose the style")).to_be_visible()
    expect(page.get_by_role("heading", name="Fox of the woods")).to_have_count(0)  # only what goes with it is left
    page.get_by_label("Name of the merge").fill("Fox anew")
    row(page, style["name"]).first.get_by_role("button", name="Merge these two").click()
    expect(page.get_by_role("heading", name="Fox anew")).to_be_visible()
    job = read_job(window, page)
    assert job["kind"] == "merge"
    assert {lora["role"]: lora["lora_id"] for lora in job["loras"]} == {"content": uploaded, "style": style["id"]}
    expect(state(page, "Succeeded")).to_be_visible(timeout=JOB_ENDS_MS)
    expect(page.get_by_role("link", name="Merged LoRA for diffusers")).to_be_visible()
    expect(page.get_by_alt_text("What each LoRA draws alone")).to_be_visible()


def test_what_a_job_made_is_named_tagged_kept_and_fetched(window, http, ended):
    lora = made_by(http, ended, "merged")
    page = window.open("/#/library", with_key=True)
    page.get_by_role("link", name="Merged", exact=True).click()
    mine = page.get_by_role("listitem").filter(has=page.get_by_role("link", name=f"job {ended.id[-8:]}"))
    expect(mine).to_have_count(1)
    mine.get_by_role("button", name="Rename or tag").click()
    page.get_by_label("Name").fill("Neon fox")
    page.get_by_label("Tags").fill("neon, foxes")
    page.get_by_role("button", name="Save").click()
    mine = row(page, "Neon fox")
    expect(mine.get_by_text("goes with it, unless you keep it")).to_be_visible()
    mine.get_by_role("button", name="Keep").click()
    expect(mine.get_by_text("and kept")).to_be_visible()
    mine.get_by_role("link", name="foxes").click()
    expect(page.get_by_text("Tagged “foxes”")).to_be_visible()
    expect(page.get_by_role("heading", name="Neon fox")).to_be_visible()
    page.get_by_role("link", name="Show all tags").click()
    sums = {file["format"]: file["sha256"] for file in lora["files"]}
    assert download(page, mine.get_by_role("button", name="for diffusers")) == sums["diffusers"]
    assert download(page, mine.get_by_role("button", name="for ComfyUI")) == sums["kohya"]


def test_a_lora_of_ones_own_is_uploaded_and_deleted(window, client, ended, tmp_path):
    window.expected = ("422",)
    file = client.download(ended, tmp_path)["style_lora_kohya"]
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"this is no such file")
    page = window.open("/#/library", with_key=True)
    page.get_by_role("button", name="Upload a LoRA").click()
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_label("File")).to_be_focused()
    page.get_by_label("File").set_input_files(wrong)
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_label("File")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("File").set_input_files(file)
    page.get_by_label("Name").fill("Borrowed style")
    page.get_by_label("What it holds").select_option("style")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("Borrowed style is in the library.")).to_be_visible()
    mine = row(page, "Borrowed style")
    expect(mine).to_contain_text("uploaded")
    mine.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("heading", name="Borrowed style")).to_have_count(0)
