"""What the README tells a reader to type does what it says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from safetensors import safe_open

import api
import duolora.tiny
from tests.e2e.test_personalize import ARTIFACTS

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(480)]

BASH = shutil.which("bash") or "bash"
CURL = shutil.which("curl")
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SNIPPETS = Path(api.__file__).parent / "snippets"
LINKED = [ROOT / "README.md", ROOT / "api/API.md"]


def block(word):
    """The first indented block that contains a word."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", README, re.MULTILINE)
    return next(text.strip("\n") for text in blocks if word in text)


def unindented(text):
    return re.sub(r"^ {4}", "", text, flags=re.MULTILINE) + "\n"


def edited(text, *changes):
    """The text with the reader's own values; each of those that it has must be there to be changed."""
    for theirs, ours in changes:
        assert theirs in text
        text = text.replace(theirs, ours)
    return text


def run(*command, cwd, **environment):
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    return ended


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A reader's folder: what one block leaves there the next one uses."""
    return tmp_path_factory.mktemp("desk")


@pytest.mark.skipif(not CURL, reason="the README speaks curl")
def test_curl_leads_from_pictures_to_a_picture(installation, samples, desk):
    script = edited(
        block("preview.png"),
        ("duolora/tiny/samples", str(samples.content[0].parent.parent)),
        ('"subject_class"', '"engine": "mock", "subject_class"'),
    )
    script = re.sub(r"export API=\S+ KEY=\S+", f"export API={installation.url} KEY={installation.api_key}", script)
    assert run(BASH, "-eu", "-c", script, cwd=desk).stderr == ""
    with Image.open(desk / "preview.png") as picture:
        assert picture.width > 200


@pytest.fixture(scope="module")
def fetched(installation, samples, desk):
    """What the Python client has left in `out/`, from pictures of the README's names, and what it printed."""
    for place, name in enumerate(["cat1.jpg", "cat2.jpg"]):
        Image.open(samples.content[place]).convert("RGB").save(desk / name)
    for place, name in enumerate(["ink1.png", "ink2.png"]):
        shutil.copy(samples.style[place], desk / name)
    script = edited(
        unindented(block("client.personalize(")),
        ("http://127.0.0.1:8000", installation.url),
        ("duo_...", installation.api_key),
        ('subject_class="cat"', 'subject_class="cat", rank=4, steps={"content": 2, "style": 2, "merge": 1}'),
    )
    printed = run(sys.executable, "-c", script, cwd=desk, PYTHONPATH=str(ROOT)).stdout
    return desk / "out", printed


def test_the_python_client_follows_its_job_and_fetches_every_file(fetched):
    folder, printed = fetched
    assert "succeeded" in printed
    assert {path.name for path in folder.iterdir()} == set(ARTIFACTS.values())


def test_stock_diffusers_draws_with_what_the_client_fetched(fetched):
    folder, _ = fetched
    script = edited(
        unindented(block("load_lora_weights")), ("duolora/tiny/base", str(Path(duolora.tiny.__file__).parent / "base"))
    )
    run(sys.executable, "-c", script, cwd=folder.parent)
    with Image.open(folder.parent / "picture.png") as picture:
        assert picture.size == (64, 64)


def test_the_workflow_for_comfyui_names_a_file_that_the_client_fetched(fetched):
    folder, _ = fetched
    nodes = json.loads((SNIPPETS / "comfyui.json").read_text()).values()
    (loader,) = (node for node in nodes if node["class_type"] == "LoraLoader")
    with safe_open(folder / loader["inputs"]["lora_name"], "numpy") as file:
        assert all(key.startswith("lora_unet_") for key in file.keys())  # noqa: SIM118 - it is no mapping


def test_the_readme_and_the_console_show_the_same_text_for_diffusers():
    assert unindented(block("load_lora_weights")) == (SNIPPETS / "load_in_diffusers.py").read_text()


def test_a_terminal_submits_and_follows_a_mock_job(installation, desk):
    (line,) = (line for line in block("duolora jobs submit").splitlines() if "--engine mock" in line)
    (desk / "ink").mkdir(exist_ok=True)
    for name in ("cat1.jpg", "ink/ink1.png"):
        Image.new("RGB", (64, 64), (200, 100, len(name))).save(desk / name)
    command = edited(line.split("#")[0], ("duolora ", f"{sys.executable} -m duolora.cli "))
    told = {"DUOLORA_URL": installation.url, "DUOLORA_API_KEY": installation.api_key, "PYTHONPATH": str(ROOT)}
    job_id = run(BASH, "-eu", "-c", f"{command} --out mock", cwd=desk, **told).stdout
    assert (desk / "mock" / ARTIFACTS["merged_kohya"]).exists(), job_id


def test_every_table_row_is_a_real_state(installation):
    rows = re.findall(r"^\| `(\w+)` \|", README.split("| state of a job |")[1].split("\n\n")[0], re.MULTILINE)
    schema = httpx.get(f"{installation.url}/openapi.json").json()
    assert rows == schema["components"]["schemas"]["JobState"]["enum"]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}, (
            target
        )
