"""`duolora loras` and `duolora uploads` against a running stack."""

import pytest

from worker.mock_engine import lora_file

pytestmark = [pytest.mark.xdist_group("commands"), pytest.mark.timeout(120)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "fox.safetensors"
    path.write_bytes(lora_file(kohya=True))
    return path


def test_a_lora_of_ones_own_from_its_sending_to_its_end(duolora, file, tmp_path):
    lora_id = duolora("loras", "upload", file, "--role", "style", "--tag", "own").out.strip()
    assert "fox" in duolora("loras", "list", "--tag", "own").out
    assert duolora("loras", "rename", lora_id, "vixen").status == 0
    assert duolora("loras", "tag", lora_id, "red", "sly", "--json").document()["tags"] == ["red", "sly"]
    shown = duolora("loras", "show", lora_id).out
    assert "vixen" in shown
    assert "kohya" in shown
    fetched = duolora("loras", "download", lora_id, "--out", tmp_path / "out", "--json").document()
    assert (tmp_path / "out" / "fox.safetensors").read_bytes() == file.read_bytes()
    assert list(fetched) == ["kohya"]
    nowhere = tmp_path / "nowhere"
    refused = duolora("loras", "download", lora_id, "--format", "diffusers", "--out", nowhere)
    assert (refused.status, refused.out, nowhere.exists()) == (4, "", False)
    assert f"{lora_id} has no file in the format diffusers; it has kohya" in refused.err
    assert duolora("loras", "delete", lora_id).status == 0
    assert duolora("loras", "show", lora_id).status == 4


def test_what_a_job_made_is_found_kept_merged_and_drawn_with(duolora, submit, tmp_path):
    job_id = submit("--watch", "--json").document()["id"]
    found = {lora["role"]: lora for lora in duolora("loras", "list", "--job", job_id, "--json").document()}
    assert set(found) == {"content", "style", "merged"}
    assert {lora["kept"] for lora in found.values()} == {False}
    fetch = ("loras", "download", found["merged"]["id"], "--out", tmp_path / "one", "--format", "kohya", "--json")
    assert list(duolora(*fetch).document()) == ["kohya"]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["merged.kohya.safetensors"]
    assert duolora("loras", "keep", found["content"]["id"], "--json").document()["kept"] is True
    ids = ("--content-lora", found["content"]["id"], "--style-lora", found["style"]["id"])
    merged = duolora("jobs", "submit", "--kind", "merge", *ids, "--engine", "mock", "--watch")
    assert merged.status == 0, merged.err
    drawn = duolora(
        *("jobs", "submit", "--kind", "generate", "--lora", f"{found['merged']['id']}=0.8", "--prompt", "a cat"),
        *("--engine", "mock", "--name", "first", "--watch", "--json"),
    )
    assert (drawn.status, drawn.document()["name"]) == (0, "first")


def test_a_mock_lora_is_marked_and_no_real_job_takes_it(duolora, submit):
    job_id = submit("--watch", "--json").document()["id"]
    made = duolora("loras", "list", "--job", job_id, "--role", "merged", "--json").document()[0]
    assert made["tags"] == ["mock"]
    refused = duolora("jobs", "submit", "--kind", "generate", "--lora", made["id"], "--prompt", "a cat")
    assert refused.status == 2
    assert "made by the mock engine" in refused.err


def test_one_side_alone_is_trained(duolora, pictures):
    ended = duolora("jobs", "submit", "--kind", "train", "--style", pictures["style"], "--engine", "mock", "--watch")
    assert ended.status == 0, ended.err
    assert "style_lora.safetensors" in ended.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--kind", "merge"), "a merge job needs --content-lora"),
        (("--kind", "generate"), "a generate job needs --prompt"),
        ((), "a personalize job needs --class"),
    ],
)
def test_what_a_kind_needs_is_said(duolora, words, told):
    ended = duolora("jobs", "submit", *words)
    assert (ended.status, ended.out) == (2, "")
    assert told in ended.err


def test_pictures_that_came_first_are_taken_by_a_job(duolora, pictures):
    content = duolora("uploads", "create", *sorted(pictures["content"].glob("*.png"))).out.split()
    style = duolora("uploads", "create", "--by-link", pictures["style"] / "0.png", "--json").lines()
    assert (len(content), style[0]["state"]) == (2, "ready")
    assert "64 x 64 px" in duolora("uploads", "show", content[0]).out
    given = ("--content", *content, "--style", f"upload:{style[0]['id']}")
    ended = duolora("jobs", "submit", *given, "--class", "cat", "--engine", "mock", "--watch")
    assert ended.status == 0, ended.err
    assert duolora("uploads", "delete", content[0]).status == 0
    assert duolora("uploads", "show", content[0]).status == 4
    again = duolora("jobs", "submit", *given, "--class", "cat")
    assert again.status == 2
    assert "content_upload_ids/0" in again.err
    mixed = duolora("jobs", "submit", *given, pictures["style"], "--class", "cat")
    assert mixed.status == 2
    assert "upload all of them, or none" in mixed.err
