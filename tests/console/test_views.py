"""Every view is open to readers with any sight, hand and screen: axe's rules, no sideways scrolling."""

import os

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from api.client import Client
from deploy.local.demo import shipped_samples

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]

PICTURES = "DUOLORA_SCREENSHOTS"
"""Names a folder that takes a picture of every view, for people to look at."""
SCREENS = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 360, "height": 740}}


def key_view(window, page, job):
    page.goto(window.home)
    expect(page.get_by_role("heading", name="Enter your API key")).to_be_visible()


def enter(window, page):
    page.goto(f"{window.home}/#key={window.key}")
    expect(page.get_by_role("heading", name="Create a LoRA")).to_be_visible()


def new_job_view(window, page, job):
    enter(window, page)
    page.get_by_text("More settings").click()
    page.get_by_label("Seed").fill("x")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert")).to_be_visible()


def pictures_view(window, page, job):
    samples = shipped_samples()
    enter(window, page)
    page.get_by_label("Choose subject pictures").set_input_files([samples.content[0], samples.content[0], __file__])
    page.get_by_label("Choose style pictures").set_input_files(samples.style)
    expect(page.get_by_text("Looks the same")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_visible()


def checked_view(window, page, job):
    samples = shipped_samples()
    enter(window, page)
    page.get_by_label("Choose subject pictures").set_input_files(samples.content[:1])
    page.get_by_label("Choose style pictures").set_input_files(samples.style)
    expect(page.get_by_text("Everything is in order.")).to_be_visible()


def jobs_view(window, page, job):
    enter(window, page)
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("link", name="Succeeded").click()
    expect(page.get_by_role("link", name=f"Job {job.id[-8:]}")).to_be_visible()


def confirm_view(window, page, job):
    jobs_view(window, page, job)
    page.get_by_role("button", name=f"Delete job {job.id[-8:]}").click()
    expect(page.get_by_role("dialog", name="Delete")).to_be_visible()


def library_view(window, page, job):
    enter(window, page)
    page.get_by_role("link", name="Library", exact=True).click()
    page.get_by_role("button", name="Upload a LoRA").click()
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_label("File")).to_be_focused()
    page.get_by_role("button", name="Rename or tag").first.click()
    expect(page.get_by_label("Tags").nth(1)).to_be_visible()


def merging_view(window, page, job):
    enter(window, page)
    page.get_by_role("link", name="Library", exact=True).click()
    page.get_by_role("button", name="Merge with").first.click()
    expect(page.get_by_role("button", name="Merge these two").first).to_be_visible()


def keys_view(window, page, job):
    enter(window, page)
    page.get_by_role("link", name="Keys").click()
    page.get_by_role("button", name="Make a key").click()
    page.get_by_label("What it may do").select_option("own")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_text("Tick at least one.")).to_be_visible()


def webhooks_view(window, page, job):
    enter(window, page)
    page.get_by_role("link", name="Webhooks").click()
    page.get_by_role("button", name="Add a webhook").click()
    page.get_by_role("button", name="Create webhook").click()
    expect(page.get_by_label("URL")).to_be_focused()


def webhook_view(window, page, job):
    webhooks_view(window, page, job)
    page.get_by_label("URL").fill("http://127.0.0.1:9/nobody-listens-here-and-the-address-is-a-long-one")
    page.get_by_role("button", name="Create webhook").click()
    expect(page.get_by_text("it is shown this once")).to_be_visible()
    page.get_by_role("link", name="nobody-listens-here").first.click()
    page.get_by_role("button", name="Send a ping").click()
    page.get_by_text("What was sent").first.click()
    expect(page.get_by_label("Body of webhook.ping").first).to_be_visible()


def job_view(window, page, job):
    enter(window, page)
    page.goto(f"{window.home}/#/jobs/{job.id}")
    expect(page.get_by_role("img", name="Loss over steps").first).to_be_visible()
    expect(page.get_by_alt_text("The pictures you sent")).to_be_visible()
    page.get_by_text("As a table").first.click()
    page.get_by_text("How the merge shares out the layers").click()


def draw_view(window, page, job):
    enter(window, page)
    page.goto(f"{window.home}/#/draw?job={job.id}")
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(1)
    page.get_by_text("More settings").click()
    page.get_by_role("button", name="Add another prompt").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_be_visible()


def drawn_view(window, page, job):
    enter(window, page)
    page.goto(f"{window.home}/#/jobs/{drawn(window).id}")
    expect(page.get_by_role("list", name="Pictures of: a cup").get_by_role("img")).to_have_count(4)


def deleting_view(window, page, job):
    enter(window, page)
    page.goto(f"{window.home}/#/jobs/{job.id}")
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog", name="Delete job")
    dialog.get_by_role("checkbox").first.check()
    expect(dialog.get_by_role("button", name="Keep 1")).to_be_visible()


def receipt_view(window, page, job):
    gone = drawn(window)
    enter(window, page)
    page.goto(f"{window.home}/#/jobs/{gone.id}")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("region", name="is deleted")).to_be_visible()


def drawn(window):
    """A job that drew."""
    with Client(window.home, window.key) as client:
        left = [job for job in client.jobs(kind="generate", state="succeeded") if job.engine == "mock"]
        prompts = ["a cup", "a kettle with a rather long description of where it stands and what is to be seen behind"]
        return left[0] if left else client.generate(prompts=prompts, engine="mock", wait_s=30)


VIEWS = [
    draw_view,
    drawn_view,
    deleting_view,
    receipt_view,
    key_view,
    new_job_view,
    pictures_view,
    checked_view,
    jobs_view,
    confirm_view,
    job_view,
    library_view,
    merging_view,
    keys_view,
    webhooks_view,
    webhook_view,
]


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_keeps_the_rules_of_access_and_fits_the_screen(window, ended, view, colours, screen):
    page = window.open()
    page.emulate_media(color_scheme="light" if colours == "dark" else "dark")
    page.set_viewport_size(SCREENS[screen])
    page.get_by_label("Theme").select_option(colours)
    view(window, page, ended)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if folder := os.environ.get(PICTURES):
        page.screenshot(path=f"{folder}/{view.__name__.removesuffix('_view')}-{colours}-{screen}.png", full_page=True)
