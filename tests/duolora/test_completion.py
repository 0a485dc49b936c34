"""The shell completes what the command knows: asked of a real bash and, where there is one, a real fish."""

import shutil
import subprocess

import pytest

from duolora.cli import build_parser, main
from duolora.completion import script

BASH = shutil.which("bash") or "bash"
FISH = shutil.which("fish") or "fish"


def by_fish(*words):
    ask = f"complete --do-complete '{' '.join(words)}'"
    made = script(build_parser(), "fish") + ask
    ended = subprocess.run([FISH, "--no-config", "-c", made], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    return ended.stdout.split()


def by_bash(*words):
    typed = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _duolora; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    made = script(build_parser(), "bash") + ask
    return subprocess.run([BASH, "-eu", "-c", made], capture_output=True, text=True, check=True).stdout.split()


SHELLS = [
    by_bash,
    pytest.param(by_fish, marks=pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")),
]


@pytest.mark.parametrize("completed", SHELLS)
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("duolora", "tra"), ["train"]),
        (("duolora", "train", "both", "--content-t"), ["--content-trigger"]),
        (("duolora", "train", "con"), ["content"]),
        (("duolora", "completion", ""), ["bash", "zsh", "fish", "--help"]),
        (("duolora", "nowhere", "--hel"), ["--help"]),
    ],
)
def test_words_are_completed_where_they_stand(completed, words, offered):
    assert sorted(completed(*words)) == sorted(offered)


def test_other_shells_get_what_they_need_first(capsys):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -Uz compinit bashcompinit")
