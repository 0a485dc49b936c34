"""`duolora evaluate`: its options, and what each suite is run with. Torch is imported when a suite runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from duolora.device_options import device_options, device_runtime
from duolora.errors import InvalidConfig
from duolora.recipes import COMPARED, EMBEDDED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from duolora.evaluate.methods import Method
    from duolora.evaluate.provenance import Identity
    from duolora.evaluate.score_book import E, ScoreBook
    from duolora.evaluate.truth_suite import Selection
    from duolora.models.base import DiffusionBase

SUITES = ("truth", "folders")
TENANTS_ON_GPU = 48
MOST_PICTURES = 16
TABLE_WIDTH = 150


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("evaluate", help="compare merge methods: one table, with intervals")
    parser.add_argument(
        "--suite",
        choices=SUITES,
        default="truth",
        help="truth: the embedded world, whose right answers are known (default); folders: your pictures in PATH, "
        "by the paper's protocol",
    )
    parser.add_argument(
        "path", type=Path, nargs="?", metavar="PATH", help="for folders: has subjects/NAME/*.png and styles/NAME/*.png"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="8 pairs instead of 96")
    which.add_argument("--wide", action="store_true", help="384 pairs, the 96 first: to part methods that lie close")
    which.add_argument("--development", action="store_true", help="the pairs that settings are chosen on")
    parser.add_argument("--pairs", type=int, help="only so many pairs from the start of the list, to see it run")
    parser.add_argument("--methods", default="all", help="all, or names with commas between")
    parser.add_argument("--seeds", type=int, default=3, help="trainings and samplings of each pair (default: 3)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for tables, pictures and LoRAs; runs go on in it"
    )
    parser.add_argument(
        "--tenants", type=int, help=f"pairs per pass (default: {TENANTS_ON_GPU} for tiny on a GPU, else 1)"
    )
    parser.add_argument(
        "--part",
        metavar="K/N",
        help="truth: only the Kth of N parts, to share a run between GPUs; then run once without",
    )
    parser.add_argument("--workers", type=int, help="processes for merges on the CPU (default: as many as cores)")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="try every setting of every method, not only those that did well on the development list (there always)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="score the named methods anew, or all if the code has changed; LoRAs are kept",
    )
    parser.add_argument("--base", default="tiny", help="tiny, or another base that draws the embedded world")
    parser.add_argument(
        "--recipe", help="named settings of the trainings (default: for tiny 250 steps a side, else by the base)"
    )
    parser.add_argument("--lora-steps", type=int, help="steps of each LoRA's training (default: the recipe's)")
    device_options(parser)
    folders = parser.add_argument_group("networks that folders are judged by: a folder, or an id on the model hub")
    folders.add_argument("--dino", default="facebook/dino-vits16", help="likeness of subjects (default: %(default)s)")
    folders.add_argument("--clip", default="openai/clip-vit-base-patch32", help="CLIP-I, CLIP-T (default: %(default)s)")
    folders.add_argument("--csd", default="yuxi-liu-wired/CSD", help="likeness of styles (default: %(default)s)")
    folders.add_argument("--pictures", type=int, default=4, help="pictures drawn for each prompt (default: 4)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the suite that was asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("duolora.evaluate").setLevel(logging.INFO)
    _check(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    return _run_truth(arguments) if arguments.suite == "truth" else _run_folders(arguments)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that contradict each other.

    Raises:
        InvalidConfig: always says which.
    """
    counts = (arguments.seeds, arguments.tenants, arguments.pairs, arguments.workers)
    if min(number for number in counts if number is not None) < 1:
        raise InvalidConfig("--seeds, --tenants, --pairs and --workers must be at least 1")
    if not 1 <= arguments.pictures <= MOST_PICTURES:
        raise InvalidConfig(f"--pictures must lie between 1 and {MOST_PICTURES}")
    if (arguments.suite == "folders") != (arguments.path is not None):
        raise InvalidConfig("--suite folders needs the PATH of the folders, and no other suite takes one")
    lists = arguments.quick or arguments.wide or arguments.development
    if arguments.suite == "folders" and (lists or arguments.pairs is not None or arguments.part is not None):
        raise InvalidConfig(
            "--quick, --wide, --development, --pairs and --part choose among the truth suite's; folders are run whole"
        )


def _run_truth(arguments: argparse.Namespace) -> int:
    """Run the truth suite and write its reports."""
    from duolora.evaluate.methods import chosen_methods  # noqa: PLC0415 - imports torch
    from duolora.evaluate.network import shipped_evaluator  # noqa: PLC0415
    from duolora.evaluate.provenance import identity, truth_identity  # noqa: PLC0415
    from duolora.evaluate.report import forgotten, outcome, print_tables, write_reports  # noqa: PLC0415
    from duolora.evaluate.run import Plan, run_truth_suite  # noqa: PLC0415
    from duolora.evaluate.score_book import Entry, open_book  # noqa: PLC0415
    from duolora.evaluate.suite_plan import Part  # noqa: PLC0415
    from duolora.evaluate.truth_suite import truth_pairs  # noqa: PLC0415

    methods = chosen_methods(arguments.methods, whole_grid=arguments.sweep or arguments.development)
    selection = _selection(arguments)
    base = _load(arguments)
    part = None if arguments.part is None else Part.from_word(arguments.part)
    plan = Plan(pairs=truth_pairs(selection)[: arguments.pairs], part=part, **_how(arguments, base, methods))
    decides = identity(base, plan.config(plan.pairs[0].prompts, 0), truth_identity())
    book = open_book(arguments.out, Entry.from_record, part)
    _begin(arguments, decides, book, forgotten(methods))
    provenance = _provenance(arguments, base, decides) | {"selection": selection, "pairs": len(plan.pairs)}
    run_truth_suite(plan, base, shipped_evaluator(base.runtime.device), book)
    if part is not None:
        wide_console().print(f"part {arguments.part} is scored; after all parts, run it without --part for the tables")
        return 0
    found = outcome(plan, book.entries())
    write_reports(plan, found, book.entries(), provenance)
    print_tables(found, wide_console())
    return 0


def _selection(arguments: argparse.Namespace) -> Selection:
    """Return the list of pairs that was asked for."""
    from duolora.evaluate.truth_suite import Selection  # noqa: PLC0415 - imports torch

    asked = (Selection.QUICK, Selection.WIDE, Selection.DEVELOPMENT)
    return next((each for each in asked if getattr(arguments, each)), Selection.FULL)


def _run_folders(arguments: argparse.Namespace) -> int:
    """Run the paper's protocol on a user's folders and write its tables."""
    from duolora.evaluate.folder_run import (  # noqa: PLC0415 - imports torch
        FolderEntry,
        FolderPlan,
        Judges,
        folder_table,
        run_folder_suite,
        write_folder_reports,
    )
    from duolora.evaluate.folder_suite import read_suite  # noqa: PLC0415
    from duolora.evaluate.methods import chosen_methods  # noqa: PLC0415
    from duolora.evaluate.perceptual import Clip, Csd, Dino  # noqa: PLC0415
    from duolora.evaluate.provenance import folders_identity, identity  # noqa: PLC0415
    from duolora.evaluate.report import forgotten  # noqa: PLC0415
    from duolora.evaluate.score_book import open_book  # noqa: PLC0415

    methods, suite = chosen_methods(arguments.methods, whole_grid=arguments.sweep), read_suite(arguments.path)
    device = device_runtime(arguments).device
    judges = Judges(Dino(arguments.dino, device), Clip(arguments.clip, device), Csd(arguments.csd, device))
    base = _load(arguments)
    plan = FolderPlan(suite=suite, pictures=arguments.pictures, **_how(arguments, base, methods))
    networks = {name: getattr(arguments, name) for name in ("dino", "clip", "csd")}
    config = plan.job(suite.pairs[0], 0).config
    decides = identity(base, config, folders_identity(suite, networks, plan.pictures))
    book = open_book(arguments.out, FolderEntry.from_record)
    _begin(arguments, decides, book, forgotten(methods))
    run_folder_suite(plan, base, judges, book)
    provenance = _provenance(arguments, base, decides)
    for title, rows in write_folder_reports(plan, book.entries(), provenance).items():
        wide_console().print(folder_table(title, rows))
    return 0


def _how(arguments: argparse.Namespace, base: DiffusionBase, methods: Sequence[Method]) -> dict[str, Any]:
    """Return the fields that the plans of both suites share."""
    long_enough = COMPARED if arguments.base == EMBEDDED else None
    return {
        "seeds": arguments.seeds,
        "methods": methods,
        "tenants": _tenants(arguments, base),
        "out": arguments.out,
        "base_name": arguments.base,
        "recipe": arguments.recipe or long_enough,
        "lora_steps": arguments.lora_steps,
        "workers": arguments.workers,
    }


def _begin(arguments: argparse.Namespace, decides: Identity, book: ScoreBook[E], methods: Sequence[str]) -> None:
    """Make sure that a folder's scores belong together, and note what decides them.

    `--again` keeps the LoRAs and drops the scores of the named methods; where something decides the scores that was not
    so when the folder was begun, it drops all of them.

    Raises:
        InvalidConfig: the folder was begun with something else; the message names what.
    """
    path = arguments.out / "identity.json"
    if path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        trained, scored = (
            [name for name, value in of_now.items() if begun.get(part, {}).get(name) != value]
            for part, of_now in (("loras", decides.loras), ("scores", decides.scores))
        )
        if trained or (scored and not arguments.again):
            kept = "" if trained else ", or --again to keep the LoRAs and score everything anew"
            named = ", ".join([*trained, *scored])
            raise InvalidConfig(f"{path.parent} was begun with another {named}; choose another --out{kept}")
        if scored:
            book.forget_all()
    if arguments.again:
        book.forget(methods)
    path.write_text(json.dumps({"loras": decides.loras, "scores": decides.scores}, indent=1) + "\n", encoding="utf-8")


def _provenance(arguments: argparse.Namespace, base: DiffusionBase, decides: Identity) -> dict[str, Any]:
    """Return what a run was made of and with."""
    from duolora.evaluate.provenance import environment  # noqa: PLC0415 - imports torch

    return {
        **decides.flat(),
        **environment(base),
        "suite": arguments.suite,
        "seeds": list(range(arguments.seeds)),
        "tenants": _tenants(arguments, base),
    }


def _tenants(arguments: argparse.Namespace, base: DiffusionBase) -> int:
    """Return how many pairs share a pass: one where a pass fills the machine already."""
    if arguments.tenants is not None:
        return int(arguments.tenants)
    small = arguments.base == EMBEDDED and base.runtime.device.type == "cuda"
    return TENANTS_ON_GPU if small else 1


def wide_console() -> Console:
    """Return a console on standard output that does not cut tables off where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)


def _load(arguments: argparse.Namespace) -> DiffusionBase:
    """Load the base."""
    from duolora.models.registry import load_base  # noqa: PLC0415 - imports torch

    return load_base(arguments.base, device_runtime(arguments))
