"""Drawing with LoRAs: from a result, from the library, and from nothing; the pictures come as a grid."""

import re

import pytest
from playwright.sync_api import expect

from tests.console.gestures import download, read_job, state

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]

JOB_ENDS_MS = 120_000
PNG = b"\x89PNG\r\n\x1a\n"


def form(page):
    """The form, with what it knows of the library."""
    expect(page.get_by_role("heading", name="Draw", exact=True)).to_be_visible()
    return page.get_by_role("region", name="1. LoRAs")


def test_a_result_is_drawn_with_and_its_drawing_changed_and_drawn_again(window, client, ended):
    [merged] = [lora for lora in client.loras(job_id=ended.id) if lora.role == "merged"]
    page = window.open(f"/#/jobs/{ended.id}", with_key=True)
    page.get_by_role("link", name="Draw with it").click()
    expect(form(page).get_by_role("checkbox", checked=True)).to_have_count(1)
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_have_value(f"a {merged.trigger}")  # the words that call it
    page.get_by_role("spinbutton", name="Strength of").fill("0.8")
    page.get_by_role("button", name="Add another prompt").click()
    expect(page.get_by_label("Prompt 2")).to_be_focused()
    page.keyboard.type("a teapot")
    page.get_by_label("Pictures of each prompt").fill("2")
    page.get_by_label("Seed").fill("7")
    page.get_by_text("More settings").click()
    page.get_by_label("Steps").fill("3")
    page.get_by_label("Guidance").fill("2.5")
    expect(page.get_by_text("Everything is in order.")).to_be_visible()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(state(page, "Succeeded")).to_be_visible(timeout=JOB_ENDS_MS)

    job = read_job(window, page)
    assert [(lora["lora_id"], lora["strength"]) for lora in job["loras"]] == [(merged.id, 0.8)]
    sampling = {"images": 2, "steps": 3, "guidance_scale": 2.5, "resolution_px": 64, "seed": 7}
    assert job["params"]["sampling"] == sampling
    for shown in (f"a {merged.trigger}", "a teapot"):
        pictures = page.get_by_role("list", name=f"Pictures of: {shown}")
        expect(pictures.get_by_role("img")).to_have_count(2)
    assert download(page, "Download Picture 1 of 2").startswith(PNG)

    page.get_by_role("link", name="Change it and draw again").click()
    expect(page.get_by_label("Prompt 2")).to_have_value("a teapot")
    expect(page.get_by_role("spinbutton", name="Strength of")).to_have_value("0.8")
    expect(page.get_by_label("Seed")).to_have_value("7")


def test_a_lora_of_the_library_is_tried(window, ended):
    page = window.open("/#/library?role=style", with_key=True)
    page.get_by_role("link", name="Try it").first.click()
    expect(form(page).get_by_role("checkbox", checked=True)).to_have_count(1)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(re.compile("^a .+ style$"))


def test_no_more_than_four_are_chosen(window, client, ended, tmp_path):
    file = client.download(ended, tmp_path)["style_lora"]
    sent = [client.upload_lora(file, name=f"Neon {place}", base_model="tiny") for place in range(5)]
    try:
        page = window.open("/#/draw", with_key=True)
        for lora in sent[:4]:
            form(page).get_by_role("checkbox", name=lora.name).check()
        expect(form(page)).to_contain_text("4 of at most 4 chosen")
        last = form(page).get_by_role("checkbox", name=sent[4].name)
        expect(last).to_be_disabled()
        form(page).get_by_role("checkbox", name=sent[0].name).uncheck()
        expect(last).to_be_enabled()
    finally:
        for lora in sent:
            client.delete_lora(lora.id)


def test_what_is_wrong_stands_at_its_field_and_nothing_is_submitted(window, client, ended):
    known = len(list(client.jobs()))
    page = window.open("/#/draw", with_key=True)
    expect(form(page).get_by_role("checkbox").first).to_be_enabled()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("alert").get_by_role("link", name="Prompt, number 1").click()
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_focused()
    expect(prompt).to_have_attribute("aria-invalid", "true")
    form(page).get_by_role("checkbox").first.check()
    page.get_by_role("spinbutton", name="Strength of").fill("")
    page.get_by_label("Seed").fill("x")
    page.get_by_role("button", name="Draw", exact=True).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Seed: Write a whole number")
    expect(alert).to_contain_text("LoRA, number 1: Write a number")
    assert len(list(client.jobs())) == known


def test_what_the_service_refuses_stands_at_its_field(window, ended):
    window.expected = ("422",)
    page = window.open("/#/draw", with_key=True)
    page.get_by_label("Prompt", exact=True).fill("a teapot")
    page.get_by_label("Pictures of each prompt").fill("17")
    number = page.get_by_label("Pictures of each prompt")
    expect(number).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_text("Something is not right yet")).to_be_visible()


def test_a_lora_that_is_gone_is_missed_by_name(window, ended):
    window.expected = ("404",)
    page = window.open("/#/draw?lora=00000000-0000-4000-8000-000000000000", with_key=True)
    expect(page.get_by_text("is not in the library any more")).to_be_visible()
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_enabled()


def test_what_was_written_is_there_after_a_look_elsewhere(window, ended):
    page = window.open("/#/library?role=style", with_key=True)
    page.get_by_role("link", name="Try it").first.click()
    page.get_by_label("Prompt", exact=True).fill("a kettle in szn style")
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    page.get_by_role("link", name="Draw", exact=True).click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a kettle in szn style")
    expect(form(page).get_by_role("checkbox", checked=True)).to_have_count(1)
