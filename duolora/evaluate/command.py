"""`duolora evaluate`: its options, and what each suite is run with. Torch is imported when a suite runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from duolora.errors import InvalidConfig

if TYPE_CHECKING:
    import argparse

    from duolora.models.sdxl import SdxlBase

SUITES = ("truth", "folders")
TENANTS_ON_GPU = 48


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("evaluate", help="compare merge methods: one table, with intervals")
    parser.add_argument("--suite", choices=SUITES, default="truth", help="truth: the embedded world (default)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="8 pairs instead of 48")
    which.add_argument("--development", action="store_true", help="the pairs that settings are chosen on")
    parser.add_argument("--methods", default="all", help="all, or names with commas between")
    parser.add_argument("--seeds", type=int, default=3, help="trainings and samplings of each pair (default: 3)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for tables, pictures and LoRAs; runs go on in it"
    )
    parser.add_argument("--tenants", type=int, help=f"pairs per pass (default: 1 on a CPU, {TENANTS_ON_GPU} on a GPU)")
    parser.add_argument("--again", action="store_true", help="score the named methods anew; LoRAs are kept")
    parser.add_argument("--base", default="tiny", help="tiny, or another base that draws the embedded world")
    parser.add_argument("--recipe", help="named settings of the trainings (default: by the base)")
    parser.add_argument("--lora-steps", type=int, help="steps of each LoRA's training (default: the recipe's)")
    parser.add_argument("--device", default="auto")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the suite that was asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("duolora.evaluate").setLevel(logging.INFO)
    if arguments.seeds < 1 or (arguments.tenants is not None and arguments.tenants < 1):
        raise InvalidConfig("--seeds and --tenants must be at least 1")
    arguments.out.mkdir(parents=True, exist_ok=True)
    return _run_truth(arguments)


def _run_truth(arguments: argparse.Namespace) -> int:
    """Run the truth suite and write its reports."""
    from duolora.evaluate.methods import chosen_methods  # noqa: PLC0415 - imports torch
    from duolora.evaluate.network import shipped_evaluator  # noqa: PLC0415
    from duolora.evaluate.provenance import environment, identity  # noqa: PLC0415
    from duolora.evaluate.report import forgotten, outcome, print_tables, write_reports  # noqa: PLC0415
    from duolora.evaluate.run import Plan, run_truth_suite  # noqa: PLC0415
    from duolora.evaluate.score_book import Entry, ScoreBook  # noqa: PLC0415
    from duolora.evaluate.truth_suite import Selection, truth_pairs  # noqa: PLC0415

    methods = chosen_methods(arguments.methods)
    selection = Selection.QUICK if arguments.quick else Selection.FULL
    pairs = truth_pairs(Selection.DEVELOPMENT if arguments.development else selection)
    base = _load(arguments)
    on_gpu = base.runtime.device.type == "cuda"
    plan = Plan(
        pairs=pairs,
        seeds=arguments.seeds,
        methods=methods,
        tenants=arguments.tenants or (TENANTS_ON_GPU if on_gpu else 1),
        out=arguments.out,
        base_name=arguments.base,
        recipe=arguments.recipe,
        lora_steps=arguments.lora_steps,
    )
    decides = identity(base, plan)
    _require_same(arguments.out / "identity.json", decides)
    book = ScoreBook(arguments.out / "scores.jsonl", Entry.from_record)
    if arguments.again:
        book.forget(forgotten(methods))
    run_truth_suite(plan, base, shipped_evaluator(base.runtime.device), book)
    provenance = {
        **decides,
        **environment(base),
        "selection": "development" if arguments.development else selection.value,
        "seeds": list(range(plan.seeds)),
        "tenants": plan.tenants,
    }
    found = outcome(plan, book.entries())
    write_reports(plan, found, book.entries(), provenance)
    print_tables(found, Console())
    return 0


def _load(arguments: argparse.Namespace) -> SdxlBase:
    """Load the base."""
    from duolora.models.registry import load_base  # noqa: PLC0415 - imports torch
    from duolora.runtime import choose_runtime  # noqa: PLC0415

    return load_base(arguments.base, choose_runtime(arguments.device))


def _require_same(path: Path, decides: dict[str, Any]) -> None:
    """Note what decides the scores of a folder, or refuse to mix them with others.

    Raises:
        InvalidConfig: the folder was begun with something else; the message names what.
    """
    if not path.is_file():
        path.write_text(json.dumps(decides, indent=1) + "\n", encoding="utf-8")
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name, value in decides.items() if begun.get(name) != value]
    if other:
        raise InvalidConfig(f"{path.parent} was begun with another {', '.join(other)}; choose another --out")
