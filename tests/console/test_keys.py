"""Keys: made for a purpose, shown once, replaced while the console goes on, and taken back."""

import httpx
import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]


def status(window, key, path):
    return httpx.get(f"{window.home}{path}", headers={"Authorization": f"Bearer {key}"}).status_code


def row(page, name):
    return page.get_by_role("listitem").filter(has=page.get_by_role("heading", name=name, exact=True))


def make(page, label, purpose):
    page.get_by_role("button", name="Make a key").click()
    page.get_by_label("What it is for").fill(label)
    page.get_by_label("What it may do").select_option(purpose)
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_text("it is shown this once")).to_be_visible()
    key = page.get_by_label("Text for Secret").inner_text()
    page.get_by_role("button", name="I have copied it").click()
    return key


def test_a_key_may_do_what_it_was_made_for_until_it_is_revoked(window):
    window.expected = ("403",)
    page = window.open("/#/keys", with_key=True)
    key = make(page, "dashboard", "read")
    assert (status(window, key, "/jobs"), status(window, key, "/keys")) == (200, 403)
    expect(row(page, "dashboard")).to_contain_text("jobs:read, loras:read, uploads:read, webhooks:read")
    other = window.open()
    other.evaluate(f"sessionStorage.setItem('duolora.key', '{key}')")
    other.reload()
    other.goto(f"{window.home}/#/keys")
    expect(other.get_by_role("alert")).to_contain_text("admin")
    row(page, "dashboard").get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Revoke it").click()
    expect(page.get_by_role("heading", name="dashboard")).to_have_count(0)
    page.get_by_label("Also those that have ended").check()
    expect(row(page, "dashboard")).to_contain_text("Revoked")


def test_the_console_goes_on_with_the_key_that_replaces_its_own(window):
    page = window.open("/#/keys", with_key=True)
    key = make(page, "mine", "admin")
    page.goto(f"{window.home}/#key={key}")
    page.goto(f"{window.home}/#/keys")
    expect(row(page, "mine")).to_contain_text("this console uses it")
    row(page, "mine").get_by_role("button", name="Replace").click()
    page.get_by_role("button", name="Replace it").click()
    expect(page.get_by_text("it is shown this once")).to_be_visible()
    new = page.get_by_label("Text for Secret").inner_text()
    assert page.evaluate("sessionStorage.getItem('duolora.key')") == new != key
    expect(row(page, "mine").filter(has_text="Being replaced")).to_be_visible()
    current = row(page, "mine").filter(has_text="this console uses it")
    current.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("you will have to enter another key")).to_be_visible()
    page.get_by_role("button", name="Revoke it").click()
    expect(page.get_by_role("heading", name="Enter your API key")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("You have revoked the key")
