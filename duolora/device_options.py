"""Options of commands that say where the engine computes and how it uses the memory there.

Torch is imported when a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.memory import AUTO, PROFILES

if TYPE_CHECKING:
    import argparse

    from duolora.runtime import Runtime


def device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--memory",
        default=AUTO,
        metavar="PROFILE",
        help=f"{', '.join(PROFILES)}: spare memory as a card of that size must (default: auto, by what is free)",
    )


def device_runtime(arguments: argparse.Namespace) -> Runtime:
    """Choose where to compute, as `device_options` were given.

    Raises:
        InvalidConfig: there is no such device or memory profile.
    """
    from duolora.runtime import choose_runtime  # noqa: PLC0415 - imports torch

    return choose_runtime(arguments.device, memory=arguments.memory, memory_source="--memory")
