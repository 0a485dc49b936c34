"""What the service says of a job before anything runs."""

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.console.gestures import choose

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]


def test_the_service_looks_at_the_form_and_says_how_long_the_job_takes(window, client, samples, ended):
    known = len(list(client.jobs()))
    page = window.open(with_key=True)
    before = page.get_by_role("region", name="3. Before you start")
    expect(before).to_contain_text("Add pictures to both sides")
    choose(page, samples)
    expect(before).to_contain_text("Everything is in order. It takes about")
    expect(before).to_contain_text("tiny on tiny")
    page.get_by_text("More settings").click()
    page.get_by_label("Steps, subject").fill("7")
    expect(before).to_contain_text("7 steps")
    assert len(list(client.jobs())) == known


def test_what_the_service_would_refuse_stands_at_its_field_before_anything_is_submitted(window, samples):
    window.expected = ("422",)
    page = window.open(with_key=True)
    choose(page, samples)
    page.get_by_text("More settings").click()
    rank = page.get_by_label("Rank")
    rank.fill("999")
    expect(rank).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_text("Something is not right yet")).to_be_visible()
    expect(page.get_by_text("The job was not submitted.")).to_have_count(0)
    rank.fill("4")
    expect(page.get_by_text("Everything is in order.")).to_be_visible()
    expect(rank).to_have_attribute("aria-invalid", "false")


def test_what_the_service_finds_in_a_picture_is_said_beside_it(window, samples, tmp_path):
    small = tmp_path / "small.png"
    Image.open(samples.content[0]).resize((40, 40)).save(small)
    page = window.open(with_key=True)
    page.get_by_label("Choose subject pictures").set_input_files(small)
    page.get_by_label("Choose style pictures").set_input_files(samples.style)
    expect(page.get_by_role("listitem").filter(has_text="small.png").locator(".warning")).to_be_visible()
    expect(page.get_by_text("Everything is in order.")).to_be_visible()


def test_a_key_that_may_submit_nothing_learns_so_before_it_tries(window, client, samples):
    window.expected = ("403",)
    window.key = client.create_key(label="reader", scopes=["jobs:read"]).key
    page = window.open(with_key=True)
    choose(page, samples)
    before = page.get_by_role("region", name="3. Before you start")
    expect(before).to_contain_text("The key lacks the scope jobs:write")
