"""The `duolora` command. Sub-commands outside the engine add themselves by the entry-point group duolora.commands."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pydantic import ValidationError

from duolora import commands, completion
from duolora.errors import DuoLoraError

if TYPE_CHECKING:
    from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; each sub-command sets `run`, a function of the parsed arguments that returns an exit status."""
    parser = argparse.ArgumentParser(prog="duolora", description=__doc__)
    commands_of_parser = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.register(commands_of_parser)
    completion.register(commands_of_parser, parser)
    for point in sorted(entry_points(group="duolora.commands"), key=lambda point: point.name):
        point.load()(commands_of_parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error of the engine is one line on standard error and status 1."""
    arguments = build_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except DuoLoraError as error:
        print(f"duolora: {error}", file=sys.stderr)
        return 1
    except ValidationError as error:
        for fault in error.errors():
            print(f"duolora: {'.'.join(map(str, fault['loc']))}: {fault['msg']}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    raise SystemExit(main())
