"""What the README tells a reader to type does what it says."""

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from PIL import Image

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(480)]

BASH = shutil.which("bash") or "bash"
CURL = shutil.which("curl")
README = (Path(__file__).parents[2] / "README.md").read_text()


def block(word):
    """The first indented block that contains a word."""
    return next(text for text in re.findall(r"(?:^    .*\n)+", README, re.MULTILINE) if word in text)


@pytest.mark.skipif(not CURL, reason="the README speaks curl")
def test_the_first_screen_leads_from_pictures_to_a_picture(installation, samples, tmp_path):
    folder = samples.content[0].parent.parent
    script = block("preview.png").replace("duolora/tiny/samples", str(folder))
    script = re.sub(r"export API=\S+ KEY=\S+", f"export API={installation.url} KEY={installation.api_key}", script)
    script = script.replace(
        '"subject_class"', '"steps": {"content": 2, "style": 2, "merge": 1}, "rank": 4, "subject_class"'
    )
    run = subprocess.run([BASH, "-eu", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, ""), (run.stdout, (tmp_path / "job.json").read_text())
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.width > 200


def test_every_table_row_is_a_real_state(installation):
    rows = re.findall(r"^\| `(\w+)` \|", README.split("| state of a job |")[1].split("\n\n")[0], re.MULTILINE)
    schema = httpx.get(f"{installation.url}/openapi.json").json()
    assert rows == schema["components"]["schemas"]["JobState"]["enum"]
