"""Webhooks: made, tried, read about, changed and deleted, against a real receiver."""

import base64
import hashlib
import hmac
import json

import pytest
from playwright.sync_api import expect

from tests.support.webhook_receiver import webhook_receiver

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]

PATIENCE_S = 30


@pytest.fixture
def receiver():
    with webhook_receiver() as running:
        yield running


@pytest.fixture
def page(window, receiver):
    """A page of a webhook that was made there; it is deleted there in the end."""
    page = window.open("/#/webhooks", with_key=True)
    page.get_by_role("button", name="Add a webhook").click()
    page.get_by_label("URL").fill(receiver.url)
    page.get_by_label("Description").fill("Shop")
    page.get_by_role("button", name="Create webhook").click()
    expect(page.get_by_text("it is shown this once")).to_be_visible()
    yield page
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("heading", name="Webhooks")).to_be_visible()
    expect(page.get_by_role("link", name=receiver.url)).to_have_count(0)


def secret_on(page):
    return page.get_by_label("Text for Secret").inner_text()


def signatures(delivery, secret):
    """What a receiver that knows the secret expects, of Standard Webhooks' v1."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{delivery.headers['webhook-id']}.{delivery.headers['webhook-timestamp']}.".encode() + delivery.body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def ping(page, receiver):
    page.get_by_role("button", name="Send a ping").click()
    return receiver.deliveries.get(timeout=PATIENCE_S)


def test_a_webhook_signs_with_the_secret_that_was_shown_once_and_with_the_one_after_it(page, receiver):
    first = secret_on(page)
    page.get_by_role("button", name="I have copied it").click()
    page.get_by_role("link", name=receiver.url).click()
    expect(page.get_by_text("Nothing was sent yet.")).to_be_visible()
    delivery = ping(page, receiver)
    assert signatures(delivery, first) == delivery.headers["webhook-signature"]
    assert json.loads(delivery.body)["type"] == "webhook.ping"

    page.get_by_role("button", name="New secret").click()
    page.get_by_role("button", name="Make a new secret").click()
    expect(page.get_by_text("the old one signs as well, so that")).to_be_visible()
    second = secret_on(page)
    assert second != first
    both = ping(page, receiver).headers["webhook-signature"].split()
    assert len(both) == 2
    page.reload()
    expect(page.get_by_role("button", name="Send a ping")).to_be_visible()
    expect(page.get_by_label("Text for Secret")).to_have_count(0)


def test_a_delivery_can_be_read_and_sent_again(page, receiver):
    page.get_by_role("link", name=receiver.url).click()
    expect(page.get_by_role("heading", name="Deliveries")).to_be_visible()
    sent = ping(page, receiver)
    rows = page.get_by_role("listitem").filter(has_text="webhook.ping")
    expect(rows.get_by_text("Delivered")).to_be_visible()
    rows.get_by_text("What was sent").click()
    expect(page.get_by_label("Body of webhook.ping")).to_contain_text('"type": "webhook.ping"')
    expect(rows.get_by_text("answer 204 after")).to_be_visible()
    rows.get_by_role("button", name="Send again").click()
    again = receiver.deliveries.get(timeout=PATIENCE_S)
    assert (again.body, again.headers["webhook-id"]) == (sent.body, sent.headers["webhook-id"])
    expect(page.get_by_text("sent again on request")).to_be_visible()
    states = page.get_by_role("navigation", name="State of deliveries")
    states.get_by_role("link", name="Given up").click()
    expect(page.get_by_text("There is none in this state.")).to_be_visible()


def test_a_webhook_is_changed_disabled_and_enabled(page, receiver):
    page.get_by_role("link", name=receiver.url).click()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("A job has succeeded").check()
    page.get_by_role("button", name="Save changes").click()
    expect(page.get_by_text("Told of job.succeeded", exact=True)).to_be_visible()
    page.get_by_role("button", name="Disable").click()
    page.get_by_role("button", name="Disable it").click()
    expect(page.get_by_text("You disabled it.")).to_be_visible()
    page.get_by_role("link", name="All webhooks").click()
    expect(page.get_by_role("listitem").filter(has_text=receiver.url)).to_contain_text("You disabled it.")
    page.get_by_role("link", name=receiver.url).click()
    page.get_by_role("button", name="Enable").click()
    expect(page.get_by_role("button", name="Send a ping")).to_be_visible()


def test_what_the_service_refuses_stands_at_its_field(window):
    window.expected = ("422",)
    page = window.open("/#/webhooks", with_key=True)
    page.get_by_role("button", name="Add a webhook").click()
    page.get_by_role("button", name="Create webhook").click()
    url = page.get_by_label("URL")
    expect(url).to_be_focused()
    expect(url).to_have_accessible_description(
        "Your server, which answers 2xx to a POST. Enter the address of your server: https://example.org/hook"
    )
    url.fill("ftp://example.org/hook")
    page.get_by_role("button", name="Create webhook").click()
    expect(url).to_have_attribute("aria-invalid", "true")
