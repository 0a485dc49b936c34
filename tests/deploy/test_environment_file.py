"""`make env`: new secrets, once."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

from deploy.environment_file import filled

ROOT = Path(__file__).parents[2]


def make_env(folder):
    return subprocess.run(
        [sys.executable, "-m", "deploy.environment_file"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_empty_values_become_secrets_and_the_rest_is_kept():
    text = filled("# why\nA=\nB=kept\n#C=\nD=\n")
    a, d = re.fullmatch(r"# why\nA=([0-9a-f]{48})\nB=kept\n#C=\nD=([0-9a-f]{48})\n", text).groups()
    assert a != d


def test_it_writes_a_file_that_only_its_owner_reads_and_never_a_second_time(tmp_path):
    assert make_env(tmp_path).returncode == 0
    path = tmp_path / ".env"
    first = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = make_env(tmp_path)
    assert again.returncode == 1
    assert "stays as it is" in again.stderr
    assert path.read_text() == first
