"""The console in a browser, on the embedded stack with the real engine."""

import hashlib
import json
import re
import time
import uuid
from datetime import UTC, datetime

import pytest
from playwright.sync_api import expect

from api.db import make_engine, session_factory, transaction
from api.jobs.models import LogLine
from tests.console.gestures import cancel, choose, download, drop, read_job, state
from tests.support.vault import VAULT

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]

MANY_STEPS = {"content": 20_000, "style": 20_000}
JOB_ENDS_MS = 120_000


@pytest.fixture(scope="module")
def long_jobs(client):
    """Jobs that would run for long; canceled in the end."""
    jobs = []
    yield jobs
    for job in jobs:
        client.cancel(job.id)


@pytest.fixture
def running(client, samples, long_jobs):
    """A long job that is at work: the one of the test before, if it still is."""
    if not long_jobs or client.job(long_jobs[-1].id).state != "running":
        long_jobs.append(
            client.personalize(
                content=samples.content[:1], style=samples.style[:1], subject_class="animal", steps=MANY_STEPS, rank=4
            )
        )
    job, deadline = long_jobs[-1], time.monotonic() + 60
    while not client.job(job.id).progress.step:
        assert time.monotonic() < deadline, "no step after 60 s"
        time.sleep(0.1)
    return job


def test_from_dropped_pictures_to_the_merged_lora(window, samples):
    page = window.open(with_key=True)
    assert "key" not in page.url
    drop(page, "content", samples.content[:2])
    drop(page, "style", samples.style[:2])
    expect(page.get_by_role("img")).to_have_count(0)  # thumbnails say nothing that their names do not
    expect(page.locator("li img")).to_have_count(4)
    page.get_by_label(f"Caption of {samples.style[0].name}").fill("a bicycle")
    page.get_by_label("Name", exact=True).fill("Foxes in neon")
    page.get_by_label("What the subject is").fill("animal")
    page.get_by_text("More settings").click()
    page.get_by_label("Seed").fill("7")
    for stage, steps in (("subject", 12), ("style", 12), ("merge", 0)):
        page.get_by_label(f"Steps, {stage}").fill(str(steps))
    page.get_by_label("Rank").fill("4")
    with page.expect_request("**/jobs") as sent:
        page.get_by_role("button", name="Start training").click()
    assert len(sent.value.headers["idempotency-key"]) == 32

    expect(page.get_by_role("heading", name="Foxes in neon")).to_be_visible()
    expect(state(page, "Succeeded")).to_be_visible(timeout=JOB_ENDS_MS)
    job = read_job(window, page)
    assert job["params"]["prompts"]["subject_class"] == "animal"
    assert job["params"]["prompts"]["style_captions"] == ["a bicycle"]
    assert (job["params"]["content"]["seed"], job["params"]["content"]["rank"]) == (7, 4)

    details = page.get_by_role("region", name="Details")
    expect(details.get_by_text("Worker time (GPU-seconds)").locator("+ dd")).to_have_text(re.compile(r"^[\d.]+ s"))
    assert job["timings"]["worker_seconds"] > 0
    knob = page.get_by_role("slider", name="Subject against style")
    expect(knob).to_have_attribute("aria-valuetext", "subject 100 %, style 100 %")
    knob.press("End")
    expect(page.get_by_alt_text("The merge with subject 0 %, style 100 %")).to_be_visible()
    preview = page.get_by_alt_text("The pictures you sent")
    expect(preview).to_be_visible()
    page.wait_for_function("image => image.complete && image.naturalWidth > 200", arg=preview.element_handle())
    announced = {artifact["name"]: artifact["sha256"] for artifact in job["result"]["artifacts"]}
    for name, link in (
        ("merged_diffusers", "Merged LoRA for diffusers"),
        ("merged_kohya", "Merged LoRA for ComfyUI"),
        ("content_lora", "Subject LoRA for diffusers"),
        ("style_lora_kohya", "Style LoRA for ComfyUI"),
    ):
        assert hashlib.sha256(download(page, link)).hexdigest() == announced[name]
    expect(page.get_by_role("img", name="Loss over steps. Learn")).to_be_visible()
    expect(page.get_by_label("Text for diffusers")).to_contain_text('prompt = "a sbu animal in szn style"')
    expect(page.get_by_label("Text for curl")).to_contain_text("merged.diffusers.safetensors")
    workflow = json.loads(page.get_by_label("Text for ComfyUI").inner_text())
    assert workflow["2"]["inputs"]["lora_name"] == "merged.kohya.safetensors"
    assert workflow["3"]["inputs"]["text"] == "a sbu animal in szn style"
    window.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the text for diffusers").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert "load_lora_weights" in page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("button", name="Copy the request id").click()
    expect(details.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == job["request_id"]


def test_a_failed_job_shows_its_reason_and_can_be_tried_again(window, samples):
    page = window.open(with_key=True)
    choose(page, samples)
    page.get_by_label("Base model").select_option("broken")
    page.get_by_text("Recipe: Automatic").click()
    page.get_by_role("radio", name="Small model, quick").check()
    page.get_by_role("button", name="Start training").click()
    expect(state(page, "Failed")).to_be_visible(timeout=JOB_ENDS_MS)
    expect(page.get_by_text("training_diverged")).to_be_visible()
    request_id = read_job(window, page)["request_id"]
    expect(page.get_by_text("For support: request").get_by_text(request_id)).to_be_visible()
    expect(page.get_by_text("What to do: Start a new job with fewer steps")).to_be_visible()
    failed = page.url
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("Tries job")).to_be_visible()
    assert page.url != failed
    expect(state(page, "Failed")).to_be_visible(timeout=JOB_ENDS_MS)


def test_one_side_is_learned_alone_and_found_by_its_kind(window, samples):
    page = window.open(with_key=True)
    page.get_by_label("What to learn").select_option("only a style")
    expect(page.get_by_label("Choose subject pictures")).to_have_count(0)
    page.get_by_label("Choose style pictures").set_input_files(samples.style)
    page.get_by_label("Name", exact=True).fill("Neon")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("heading", name="Neon")).to_be_visible()
    job = read_job(window, page)
    assert (job["kind"], {image["side"] for image in job["images"]}) == ("train", {"style"})
    cancel(page)
    page.get_by_role("link", name="All jobs").click()
    kinds = page.get_by_role("navigation", name="Kind")
    kinds.get_by_role("link", name="Drawing").click()
    expect(page.get_by_text("There is no such job.")).to_be_visible()
    kinds.get_by_role("link", name="Training").click()
    expect(page.get_by_role("link", name=f"Job {job['id'][-8:]} Neon")).to_be_visible()


def test_pictures_are_shown_while_the_training_runs(window, client, samples, long_jobs):
    job = client.personalize(
        content=samples.content[:1],
        style=samples.style[:1],
        subject_class="animal",
        steps={"content": 400, "style": 400},
        rank=4,
        preview_every=10,
    )
    long_jobs.append(job)
    page = window.open(f"/#/jobs/{job.id}", with_key=True)
    pictures = page.get_by_role("list", name="Drawn while it learns")
    expect(pictures.get_by_alt_text("Subject, step 10,")).to_be_visible(timeout=JOB_ENDS_MS)
    cancel(page)


def test_a_reload_in_the_middle_loses_nothing(window, running):
    page = window.open(f"/#/jobs/{running.id}", with_key=True)
    curve = page.get_by_role("img", name="Loss over steps").first
    expect(curve).to_be_visible()
    before = curve.locator(".raw").first.get_attribute("d")
    page.reload()
    expect(state(page, "Running")).to_be_visible()
    expect(curve).to_be_visible()
    assert curve.locator(".raw").first.get_attribute("d").count("L") >= before.count("L")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()


def test_a_stream_that_breaks_goes_on_from_the_last_event(window, running):
    page = window.open(with_key=True)
    starts = []

    def break_once(route):
        starts.append(route.request.headers.get("last-event-id"))
        if len(starts) > 1:
            route.continue_()
            return
        data = {"data": {"stage": "content_lora", "step": 1, "loss": 0.5}}
        body = f"retry: 2000\n\nid: 1\nevent: job.progress\ndata: {json.dumps(data)}\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/events", break_once)
    page.goto(f"{window.home}/#/jobs/{running.id}")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(page.get_by_role("img", name="Loss over steps").first).to_be_visible()
    assert starts == [None, "1"]


def test_a_refusal_stands_at_the_field_it_names(window, samples):
    window.expected = ("422",)
    page = window.open(with_key=True)
    choose(page, samples)
    page.get_by_text("More settings").click()
    page.get_by_label("Rank").fill("999")
    page.get_by_text("More settings").click()
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("alert").get_by_role("link", name="Rank").click()
    rank = page.get_by_label("Rank")  # which has been unfolded
    expect(rank).to_be_focused()
    expect(rank).to_have_accessible_description(
        "Size of each LoRA; the merge has both. Input should be less than or equal to 256"
    )
    rank.fill("4")
    expect(rank).to_have_attribute("aria-invalid", "false")


LOSE_ONE_ANSWER = """
const send = window.fetch;
let lost = false;
window.fetch = async (...request) => {
    const answer = await send(...request);
    if (lost || request[1]?.method !== "POST") return answer;
    lost = true;
    throw new TypeError("the answer was lost");
};
"""


def test_sent_again_after_a_lost_answer_a_job_is_made_once(window, client, samples, running):
    window.context.add_init_script(LOSE_ONE_ANSWER)
    page = window.open(with_key=True)
    choose(page, samples)
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_text("Number 1 in the queue")).to_be_visible()
    assert [job.id for job in client.jobs() if job.state == "queued"] == [page.url.rsplit("/", 1)[1]]
    cancel(page)


def test_jobs_are_listed_by_state_and_page(window, client, samples, running):
    waiting = [
        client.personalize(content=samples.content[:1], style=samples.style[:1], subject_class="cup") for _ in range(21)
    ]
    try:
        page = window.open("/#/jobs?state=queued", with_key=True)
        links = page.get_by_role("link", name=re.compile("^Job "))
        expect(links).to_have_count(20)
        page.get_by_role("button", name="Older").click()
        expect(page.get_by_text("Page 2")).to_be_visible()
        expect(page.get_by_role("link", name=f"Job {waiting[0].id[-8:]}")).to_be_visible()
        page.get_by_role("button", name="Newer").click()
        expect(page.get_by_role("link", name=f"Job {waiting[-1].id[-8:]}")).to_be_visible()
        states = page.get_by_role("navigation", name="State")
        states.get_by_role("link", name="Running").click()
        expect(links).to_have_count(1)
        links.click()
        expect(state(page, "Running")).to_be_visible()
        page.go_back()
        expect(states.get_by_role("link", name="Running")).to_have_attribute("aria-current", "true")
        states.get_by_role("link", name="Queued").click()
        links.first.click()
        expect(page.get_by_text("Number 21 in the queue")).to_be_visible()
    finally:
        for job in waiting:
            client.cancel(job.id)


def test_the_loss_can_be_read_as_a_table(window, running):
    page = window.open(f"/#/jobs/{running.id}", with_key=True)
    page.get_by_text("As a table").first.click()
    table = page.get_by_role("table", name="Loss of Learn")
    expect(table.get_by_role("columnheader", name="Average")).to_be_visible()
    expect(table.get_by_role("row").nth(1)).to_be_visible()


def test_the_end_of_a_long_log_is_shown(window, stack, running):
    lines = [
        LogLine(
            job_id=uuid.UUID(running.id),
            stage="content_lora",
            attempt=1,
            at=datetime.now(UTC),
            level="WARNING",
            message=f"line {number}",
        )
        for number in range(1100)
    ]
    engine = make_engine(stack.env["DATABASE_URL"])
    with transaction(session_factory(engine, VAULT)) as session:
        session.add_all(lines)
    engine.dispose()
    log = window.open(f"/#/jobs/{running.id}", with_key=True).get_by_role("log")
    expect(log).to_contain_text("Learn the subject line 1099")
    log.scroll_into_view_if_needed()
    expect(log.get_by_text("line 1099")).to_be_in_viewport()
    assert log.locator("p").count() == 500


def test_a_wrong_key_is_refused_and_a_right_one_opens(window):
    window.expected = ("401",)
    page = window.open()
    expect(page.get_by_role("heading", name="Enter your API key")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.get_by_label("API key").focus()
    page.keyboard.type("duo_nonsense")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The service does not accept this key.")
    page.get_by_label("API key").fill(window.key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Create a LoRA")).to_be_visible()


def test_a_job_of_nobody_says_so(window):
    window.expected = ("404",)
    page = window.open("/#/jobs/00000000-0000-4000-8000-000000000000", with_key=True)
    expect(page.get_by_role("alert")).to_contain_text("There is no job")


def test_without_a_stream_the_job_is_read_again_and_again(window, client, running):
    window.expected = ("/events",)
    page = window.open(with_key=True)
    page.route("**/events", lambda route: route.abort())
    page.goto(f"{window.home}/#/jobs/{running.id}")
    expect(page.get_by_text("Reading every few seconds")).to_be_visible()
    expect(state(page, "Running")).to_be_visible()
    client.cancel(running.id)
    expect(state(page, "Canceled")).to_be_visible()


def test_two_tabs_share_key_and_sight(window, running):
    first = window.open(f"/#/jobs/{running.id}", with_key=True)
    second = window.open(f"/#/jobs/{running.id}")
    for page in (first, second):
        expect(state(page, "Running")).to_be_visible()
    cancel(first)
    expect(state(second, "Canceled")).to_be_visible()
    second.get_by_role("button", name="Forget key").click()
    for page in (first, second):
        expect(page.get_by_role("heading", name="Enter your API key")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_running_job_is_shown_live_and_stopped_early(window, running):
    page = window.open(f"/#/jobs/{running.id}", with_key=True)
    expect(state(page, "Running")).to_be_visible()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(page.get_by_role("img", name="Loss over steps").first).to_be_visible()
    expect(page.get_by_text("steps/s").first).to_be_visible()
    page.get_by_role("button", name="Stop and keep").click()
    page.get_by_role("button", name="Stop now").click()
    expect(page.get_by_text("Finishing early with what it has")).to_be_visible()
    expect(page.get_by_role("button", name="Stop and keep")).to_be_disabled()
    cancel(page)
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)
