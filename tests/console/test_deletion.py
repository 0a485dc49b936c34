"""Deleting jobs: what goes with one is named, what is ticked is kept first, and the receipt is shown."""

import pytest
from playwright.sync_api import expect

from tests.console.gestures import cancel, state

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]


@pytest.fixture
def made(client, samples):
    """A job that has made LoRAs, in a second."""
    job = client.personalize(
        content=samples.content[:1], style=samples.style[:1], subject_class="cup", name="Cup in neon", engine="mock"
    )
    yield client.wait(job.id, timeout_s=60)
    client.delete(job.id)


def test_an_ended_job_is_deleted_from_its_page_and_from_the_list(window, client, samples):
    window.expected = ("410",)
    one, other = (
        client.personalize(content=samples.content[:1], style=samples.style[:1], subject_class="cup") for _ in range(2)
    )
    page = window.open(f"/#/jobs/{one.id}", with_key=True)
    cancel(page)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Go back").click()
    expect(state(page, "Canceled")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    expect(page.get_by_role("link", name=f"Job {one.id[-8:]}")).to_have_count(0)
    client.cancel(other.id)
    page.get_by_role("button", name=f"Delete job {other.id[-8:]}").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("link", name=f"Job {other.id[-8:]}")).to_have_count(0)
    page.goto(f"{window.home}/#/jobs/{other.id}")
    expect(page.get_by_role("alert")).to_contain_text("has been deleted")


def test_the_loras_that_go_with_a_job_are_named_and_kept_first(client, made, window):
    loras = {lora.role: lora for lora in client.loras(job_id=made.id)}
    assert set(loras) == {"content", "style", "merged"}
    client.update_lora(loras["style"].id, keep=True)
    page = window.open(f"/#/jobs/{made.id}", with_key=True)
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog", name="Delete job Cup in neon?")
    expect(dialog).to_contain_text("These 2 LoRAs go with it")
    expect(dialog.get_by_role("checkbox")).to_have_count(2)
    dialog.get_by_role("checkbox", name=f"Keep {loras['merged'].name} Merged").check()
    dialog.get_by_role("button", name="Keep 1 and delete the rest").click()
    receipt = page.get_by_role("region", name="Job Cup in neon is deleted")
    expect(receipt).to_contain_text("Nothing of it is left")
    expect(receipt).to_contain_text("2 pictures or files that came with it")
    expect(receipt).to_contain_text(f"Kept in the library: {loras['merged'].name}")
    expect(receipt).to_contain_text(made.id)
    left = {lora.id: lora for lora in client.loras()}
    assert loras["content"].id not in left
    assert left[loras["merged"].id].kept
    assert left[loras["style"].id].kept
    page.get_by_role("button", name="Put away").click()
    expect(receipt).to_have_count(0)
    for role in ("merged", "style"):
        client.delete_lora(loras[role].id)


def test_what_cannot_be_kept_keeps_its_job(made, window):
    window.expected = ("429",)
    page = window.open(f"/#/jobs/{made.id}", with_key=True)
    refusal = {"title": "Too much is stored", "status": 429, "code": "quota_exceeded", "retryable": False}
    page.route("**/loras/*", lambda route: route.fulfill(status=429, json=refusal))
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Keep 1 and delete the rest").click()
    expect(page.get_by_role("alert")).to_contain_text("Too much is stored")
    page.reload()
    expect(state(page, "Succeeded")).to_be_visible()
