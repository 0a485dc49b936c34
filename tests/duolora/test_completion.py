"""The shell completes what the command knows: asked of a real bash."""

import shutil
import subprocess

import pytest

from duolora.cli import build_parser, main
from duolora.completion import script

BASH = shutil.which("bash") or "bash"


def completed(*words):
    """What bash offers after these words, the last of them unfinished."""
    typed = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _duolora; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    made = script(build_parser(), "bash") + ask
    return subprocess.run([BASH, "-eu", "-c", made], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("duolora", "tra"), ["train"]),
        (("duolora", "train", "both", "--content-t"), ["--content-trigger"]),
        (("duolora", "train", "con"), ["content"]),
        (("duolora", "completion", ""), ["bash", "zsh", "--help"]),
        (("duolora", "nowhere", "--hel"), ["--help"]),
    ],
)
def test_words_are_completed_where_they_stand(words, offered):
    assert sorted(completed(*words)) == sorted(offered)


def test_other_shells_get_what_they_need_first(capsys):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -Uz compinit bashcompinit")
