"""Pictures are looked at as soon as they are chosen, and put in order by mouse and by keyboard."""

import shutil

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.console.gestures import choose

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]


def names(page, side):
    return page.get_by_role("list", name=f"{side}, in order").locator(".file").all_inner_texts()


def test_what_cannot_be_sent_is_said_before(window, samples, tmp_path):
    page = window.open(with_key=True)
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert")).to_contain_text("Choose at least one picture.")
    expect(page.get_by_role("alert")).to_be_focused()
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    Image.new("RGB", (8, 200)).save(tmp_path / "narrow.png")
    content = page.get_by_label("Choose subject pictures")
    content.set_input_files([tmp_path / "notes.txt", tmp_path / "broken.png", tmp_path / "narrow.png"])
    expect(page.get_by_text("This is no PNG, JPEG or WebP")).to_be_visible()
    expect(page.get_by_text("damaged and cannot be opened")).to_be_visible()
    expect(page.get_by_text("each side needs at least 32 pixels")).to_be_visible()
    for name in ("notes.txt", "broken.png", "narrow.png"):
        page.get_by_role("button", name=f"Remove {name}").click()
    content.set_input_files(list(samples.content[:1]) * 21)
    page.get_by_text("More settings").click()
    page.get_by_label("Seed").fill("many")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert")).to_contain_text("21 pictures are too many: at most 20.")
    expect(page.get_by_label("Seed")).to_have_attribute("aria-invalid", "true")
    assert not [url for url in window.asked if url.endswith("/jobs")]


@pytest.mark.parametrize(
    ("beginning", "remedy"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "export it as JPEG"),
        (b"GIF89a", "GIF pictures cannot be used"),
        (b"PK\x03\x04", "Unpack it"),
        (b"", "This file is empty"),
    ],
)
def test_a_file_of_another_kind_is_told_apart_by_its_bytes(window, tmp_path, beginning, remedy):
    page = window.open(with_key=True)
    (tmp_path / "photo.jpg").write_bytes(beginning)
    page.get_by_label("Choose subject pictures").set_input_files(tmp_path / "photo.jpg")
    expect(page.get_by_role("alert")).to_contain_text(remedy)


def test_the_same_picture_twice_is_pointed_out(window, samples, tmp_path):
    page = window.open(with_key=True)
    page.get_by_label("Choose subject pictures").set_input_files(samples.content)
    page.get_by_label("Choose style pictures").set_input_files(samples.style)
    expect(page.locator("li img")).to_have_count(len(samples.content) + len(samples.style))
    expect(page.get_by_text("Looks the same")).to_have_count(0)
    copy = tmp_path / "again.jpg"
    Image.open(samples.content[0]).convert("RGB").save(copy, quality=80)
    page.get_by_label("Choose subject pictures").set_input_files(copy)
    expect(page.get_by_text(f"Looks the same as {samples.content[0].name}. Twice")).to_be_visible()
    page.get_by_role("button", name="Remove again.jpg").click()
    expect(page.get_by_text("Looks the same")).to_have_count(0)
    page.get_by_label("Choose style pictures").set_input_files(shutil.copy(samples.content[0], tmp_path / "other.png"))
    expect(page.get_by_text("belongs to one side")).to_have_count(2)


def test_a_picture_smaller_than_the_training_is_pointed_out(window, samples):
    page = window.open(with_key=True)
    choose(page, samples)
    page.get_by_text("More settings").click()
    page.get_by_label("Resolution").fill("512")
    expect(page.get_by_text("Smaller than the 512 pixels")).to_have_count(4)
    page.get_by_label("Resolution").fill("64")
    expect(page.get_by_text("Smaller than")).to_have_count(0)
    expect(page.get_by_text("Two pictures work; three to five")).to_have_count(2)


def test_pictures_are_put_in_order_by_keyboard_and_by_mouse(window, samples):
    page = window.open(with_key=True)
    page.get_by_label("Choose subject pictures").set_input_files(samples.content[:3])
    one, two, three = (path.name for path in samples.content[:3])
    expect(page.locator("li img")).to_have_count(3)
    page.get_by_role("button", name=f"Move {one} down").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text(f"{one} is now number 2 of 3.")).to_be_attached()
    expect(page.get_by_role("button", name=f"Move {one} down")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name=f"Move {one} up")).to_be_focused()  # there is no way further down
    assert names(page, "Subject") == [two, three, one]
    page.locator("li", has_text=one).drag_to(page.locator("li", has_text=two))
    assert names(page, "Subject") == [one, two, three]
    page.get_by_role("button", name=f"Remove {two}").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name=f"Remove {three}")).to_be_focused()
    assert names(page, "Subject") == [one, three]


def test_what_was_begun_is_there_after_a_look_elsewhere_and_goes_with_the_key(window, samples):
    page = window.open(with_key=True)
    page.get_by_label("Choose subject pictures").set_input_files(samples.content[:2])
    page.get_by_label("Name", exact=True).fill("Foxes")
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    page.get_by_role("link", name="Create", exact=True).click()
    expect(page.locator("li img")).to_have_count(2)
    expect(page.get_by_label("Name", exact=True)).to_have_value("Foxes")
    page.get_by_role("button", name="Forget key").click()
    page.get_by_label("API key").fill(window.key)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Name", exact=True)).to_have_value("")
    expect(page.locator("li img")).to_have_count(0)


def test_who_would_lose_chosen_pictures_is_asked_first(window, samples):
    page = window.open(with_key=True)
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.get_by_label("Name", exact=True).click()  # without a gesture browsers ask nothing
    page.reload()
    expect(page.get_by_role("heading", name="Create a LoRA")).to_be_visible()
    assert asked == []
    page.get_by_label("Choose subject pictures").set_input_files(samples.content[:1])
    page.get_by_label("Name", exact=True).click()
    page.reload()
    expect(page.get_by_role("heading", name="Create a LoRA")).to_be_visible()
    assert asked == ["beforeunload"]
