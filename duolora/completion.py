"""`duolora completion`: a script by which a shell completes the command's words, made from its parser.

Options and sub-commands only; where none fits, the shell completes names of files.
"""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BASH = """\
_duolora() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" path=duolora index
    local -A words=(
{table}
    )
    for ((index = 1; index < COMP_CWORD; index++)); do
        [[ -n "${{words[$path ${{COMP_WORDS[index]}}]+known}}" ]] && path+=" ${{COMP_WORDS[index]}}"
    done
    COMPREPLY=($(compgen -W "${{words[$path]}}" -- "$current"))
}}
complete -o default -F _duolora duolora
"""
_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"
_FISH = """\
function __duolora_words
    switch "$argv"
{table}
        case '*'
            return 1
    end
end
function __duolora_complete
    set -l path duolora
    for word in (commandline -opc)[2..]
        __duolora_words "$path $word" >/dev/null; and set path "$path $word"
    end
    set -l current (commandline -ct)
    __duolora_words $path | string match -- "$current*"; or __fish_complete_path "$current"
end
complete -c duolora -f -a '(__duolora_complete)'
"""
SHELLS = ("bash", "zsh", "fish")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser], whole: argparse.ArgumentParser) -> None:
    """Add `completion`; it completes what `whole` knows when it runs."""
    about = 'print a script for a shell: eval "$(duolora completion bash)", or duolora completion fish | source'
    parser = commands.add_parser("completion", help=about, description=about)
    parser.add_argument("shell", choices=SHELLS)

    def run(arguments: argparse.Namespace) -> int:
        print(script(whole, arguments.shell), end="")
        return 0

    parser.set_defaults(run=run)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell."""
    table = list(_words(parser, "duolora"))
    if shell == "fish":
        cases = (
            f"        case {shlex.quote(path)}\n            printf '%s\\n' {shlex.join(words)}" for path, words in table
        )
        return _FISH.format(table="\n".join(cases))
    lines = (f"        [{shlex.quote(path)}]={shlex.quote(' '.join(words))}" for path, words in table)
    made = _BASH.format(table="\n".join(lines))
    return _ZSH + made if shell == "zsh" else made


def _words(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, list[str]]]:
    """Return what may follow each chain of sub-commands."""
    words: list[str] = []
    below: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse tells of them in no other way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - likewise
            below |= action.choices
        elif action.option_strings:
            words += [option for option in action.option_strings if option.startswith("--")]
        elif action.choices is not None:
            words += map(str, action.choices)
    yield path, [*below, *words]
    for name, each in below.items():
        yield from _words(each, f"{path} {name}")
