"""Every view is open to readers with any sight, hand and screen: axe's rules, no sideways scrolling."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]

SCREENS = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def ended(client, samples):
    """A job with everything there is to see: one that another test has left, or else a new one."""
    left = [job for job in client.jobs() if job.state == "succeeded"]
    if left:
        return left[0]
    job = client.personalize(
        content=samples.content[:2],
        style=samples.style[:2],
        subject_class=samples.subject_class,
        steps={"content": 6, "style": 6, "merge": 0},
        rank=4,
    )
    return client.wait(job.id, timeout_s=180)


def key_view(window, page, job):
    page.goto(window.home)
    expect(page.get_by_role("heading", name="Enter your API key")).to_be_visible()


def enter(window, page):
    page.goto(f"{window.home}/#key={window.key}")
    expect(page.get_by_role("heading", name="New job")).to_be_visible()


def new_job_view(window, page, job):
    enter(window, page)
    page.get_by_text("More settings").click()
    page.get_by_label("Seed").fill("x")
    page.get_by_role("button", name="Submit job").click()
    expect(page.get_by_role("alert")).to_be_visible()


def jobs_view(window, page, job):
    enter(window, page)
    page.get_by_role("link", name="Jobs").click()
    page.get_by_label("State").select_option("Succeeded")
    expect(page.get_by_role("link", name=f"Job {job.id[-8:]}")).to_be_visible()


def job_view(window, page, job):
    enter(window, page)
    page.goto(f"{window.home}/#/jobs/{job.id}")
    expect(page.get_by_role("img", name="Loss over steps")).to_be_visible()
    expect(page.get_by_alt_text("The pictures you sent")).to_be_visible()


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("view", [key_view, new_job_view, jobs_view, job_view])
def test_a_view_keeps_the_rules_of_access_and_fits_the_screen(window, ended, view, colours, screen):
    page = window.open()
    page.emulate_media(color_scheme=colours)
    page.set_viewport_size(SCREENS[screen])
    view(window, page, ended)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
