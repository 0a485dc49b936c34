"""How the console is served: who may load what from where, and for how long it is kept."""

import re

import pytest

from api.console.routes import DIST, security_headers


@pytest.fixture
def page(http):
    return http.get("/")


def assets(page):
    return re.findall(r'(?:src|href)="\./(assets/[^"]+)"', page.text)


def test_the_page_is_asked_for_anew_and_its_files_are_kept_for_ever(http, page):
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    assert {name.rsplit(".", 1)[1] for name in assets(page)} == {"js", "css", "svg"}
    for name in assets(page):
        answer = http.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        again = http.get(f"/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_it_loads_no_script_but_its_own_and_speaks_to_the_store_only(http, page, store_settings):
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["connect-src"] == f"'self' {store_settings.public_endpoint}"
    assert policy["img-src"] == f"'self' blob: {store_settings.public_endpoint}"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page.text)
    assert not re.search(r'(?:src|href)="(?!\./assets/)', page.text)


def test_the_policy_names_the_origin_that_callers_use():
    policy = security_headers("https://files.example.org:8443/bucket/below")["Content-Security-Policy"]
    assert "https://files.example.org:8443;" in policy
    assert "below" not in policy


@pytest.mark.parametrize("path", ["/", "/console.json", "/assets/index"])
def test_every_answer_is_guarded(http, page, path):
    if path == "/assets/index":
        path = f"/{assets(page)[0]}"
    headers = http.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "script-src 'self'" in headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/assets/none.js", "/assets/../index.html", "/assets/%2e%2e/index.html", "/assets/"])
def test_nothing_else_is_served(http, path):
    answer = http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_the_console_learns_the_limits_that_hold(serve, api_settings):
    images = api_settings.images.model_copy(update={"max_bytes": 1234})
    limits = serve(images=images).get("/console.json").json()
    assert limits["max_image_bytes"] == 1234
    assert limits["max_images_per_side"] == 20
    assert limits["min_image_side_px"] == images.min_side_px


def test_the_api_keeps_its_paths(http):
    assert http.get("/jobs", headers={"Accept": "text/html"}).status_code == 401
    assert "/" not in http.get("/openapi.json").json()["paths"]


def test_every_file_of_the_build_is_named_after_its_content():
    assert {path.name for path in DIST.iterdir()} == {"index.html", "assets", "build.json"}
    assert all(re.fullmatch(r"[\w-]+-[\w-]{8}\.\w+", path.name) for path in (DIST / "assets").iterdir())
