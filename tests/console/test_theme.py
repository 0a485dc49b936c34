"""Light, dark, or as the system says: at once, in every tab, after a reload, and before anything is painted."""

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.xdist_group("console"), pytest.mark.timeout(240)]

LIGHT, DARK = "rgb(245, 246, 247)", "rgb(20, 24, 28)"
FIRST_COLOUR = """
addEventListener("DOMContentLoaded", () => {
    window.firstColour = getComputedStyle(document.documentElement).backgroundColor;
});
"""
"""Before the page's modules have run: these wait for the document."""


def colour(page):
    return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")


def test_a_chosen_theme_goes_before_the_systems_in_every_tab_and_stays(window):
    page = window.open()
    page.emulate_media(color_scheme="light")
    assert colour(page) == LIGHT
    other = window.open()
    other.emulate_media(color_scheme="light")
    theme = page.get_by_label("Theme")
    expect(theme).to_have_value("system")
    theme.select_option("Dark")
    assert colour(page) == DARK
    expect(other.get_by_label("Theme")).to_have_value("dark")
    assert colour(other) == DARK
    page.reload()
    expect(theme).to_have_value("dark")
    assert colour(page) == DARK
    theme.select_option("System")
    assert colour(page) == LIGHT
    page.emulate_media(color_scheme="dark")
    assert colour(page) == DARK
    assert page.evaluate("localStorage.length") == 0


def test_the_theme_is_there_before_the_console_is(window):
    window.context.add_init_script(FIRST_COLOUR)
    page = window.open()
    page.emulate_media(color_scheme="light")
    page.get_by_label("Theme").select_option("Dark")
    page.route("**/assets/index-*.js", lambda route: route.abort())
    window.expected = ("index-",)
    page.reload()
    assert page.get_by_label("Theme").count() == 0
    assert page.evaluate("window.firstColour") == DARK
