"""What a run leaves to be read: table.csv, recipes.csv, table.md, results.json, grid.png; and printed tables."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from duolora.evaluate.intervals import LEVEL, RESAMPLES
from duolora.evaluate.jobs import training_costs
from duolora.evaluate.methods import OURS, TRUTH, Kind, Method
from duolora.evaluate.run import PICTURES, SHOWN_PAIRS, Plan
from duolora.evaluate.tables import (
    ALSO_RECIPES,
    OUR_RECIPE,
    Outcome,
    Row,
    Setting,
    complete_settings,
    difference_records,
    truth_row,
    two_tables,
)
from duolora.images import open_pictures
from duolora.preview import PreviewRow, preview_grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL import Image
    from rich.console import Console

    from duolora.evaluate.score_book import Entry

COLUMNS = (
    "method",
    "content",
    "style",
    "hmean",
    "hmean_lo",
    "hmean_hi",
    "truth_distance",
    "trainable",
    "seconds",
    "recontext_hmean",
    "knobs",
)
CELL_PX = 64


def outcome(plan: Plan, entries: Sequence[Entry]) -> Outcome[Entry]:
    """Choose what stands in the tables: the truth, what one LoRA does alone, then every method by its best setting."""
    pairs, seeds = [pair.name for pair in plan.pairs], list(range(plan.seeds))
    kinds = {TRUTH: Kind.REFERENCE} | {method.name: method.kind for method in plan.methods}
    settings = complete_settings(entries, pairs, seeds)
    return two_tables(
        settings, kinds, lambda: training_costs([plan.job(pair, seed) for pair in plan.pairs for seed in seeds])
    )


def write_reports(plan: Plan, found: Outcome[Entry], entries: Sequence[Entry], provenance: Mapping[str, Any]) -> None:
    """Write every file of a run under its folder."""
    merge_rows = [truth_row(setting) for setting in found.merges]
    recipe_rows = [truth_row(setting) for setting in found.recipes]
    write_csv(merge_rows, plan.out / "table.csv")
    markdown = markdown_table(merge_rows)
    if recipe_rows:
        write_csv(recipe_rows, plan.out / "recipes.csv")
        markdown += "\n" + markdown_table(recipe_rows)
    (plan.out / "table.md").write_text(markdown, encoding="utf-8")
    results = {
        "provenance": dict(provenance),
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "over": "pairs, and the seeds of each, with replacement"},
        "merging_two_loras": [asdict(row) for row in merge_rows],
        "whole_recipes": [asdict(row) for row in recipe_rows],
        "duolora_minus_rival": difference_records(found.merges, OURS),
        "duolora_minus_rival_recipes": difference_records(found.recipes, OUR_RECIPE),
        "settings": [_setting_record(setting) for setting in found.settings],
        "scores": [asdict(entry) for entry in entries],
    }
    (plan.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    shown = {setting.method for setting in found.merges} | set(ALSO_RECIPES.values())
    draw_grid(plan, [*found.merges, *(setting for setting in found.recipes if setting.method not in shown)])


def _setting_record(setting: Setting[Entry]) -> dict[str, Any]:
    """Return the means of one setting, so that a sweep can be seen whole."""
    return {
        "method": setting.method,
        "knobs": setting.knobs,
        "content": setting.mean(lambda entry: entry.joint.content),
        "style": setting.mean(lambda entry: entry.joint.style),
        "hmean": setting.mean(lambda entry: entry.joint.hmean),
        "truth_distance": setting.mean(lambda entry: entry.joint.truth_distance),
        "recontext_hmean": setting.mean(lambda entry: entry.recontext.hmean),
        "sampling_seconds": setting.mean(lambda entry: entry.sampling_seconds),
    }


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write rows with the columns of `COLUMNS`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_cells(row) for row in rows)


def _cells(row: Row) -> list[str]:
    """Return a row's cells in the order of `COLUMNS`."""
    numbers = [row.content, row.style, row.hmean.mean, row.hmean.low, row.hmean.high, row.truth_distance]
    return [
        row.method,
        *(f"{number:.4f}" for number in numbers),
        str(row.trainable),
        f"{row.seconds:.3f}",
        f"{row.recontext_hmean.mean:.4f}",
        row.knobs,
    ]


def markdown_table(rows: Sequence[Row]) -> str:
    """Return rows as a table for a README."""
    lines = [
        "| method | content | style | harmonic mean | distance to truth | recontext | trainable | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(_short_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _short_cells(row: Row) -> list[str]:
    """Return a row's cells for reading."""
    return [
        row.method,
        f"{row.content:.3f}",
        f"{row.style:.3f}",
        f"{row.hmean.mean:.3f} [{row.hmean.low:.3f}, {row.hmean.high:.3f}]",
        f"{row.truth_distance:.3f}",
        f"{row.recontext_hmean.mean:.3f}",
        str(row.trainable),
        f"{row.seconds:.2f}",
    ]


def print_tables(found: Outcome[Entry], console: Console) -> None:
    """Print both tables."""
    titles = {"Merging two LoRAs": found.merges, "Whole recipes, from pictures": found.recipes}
    for title, settings in titles.items():
        if not settings:
            continue
        table = Table(title=title)
        for heading in ("method", "content", "style", "hmean [95%]", "to truth", "recontext", "trainable", "seconds"):
            table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
        table.add_column("knobs", overflow="fold")
        for setting in settings:
            row = truth_row(setting)
            table.add_row(*_short_cells(row), row.knobs, style="bold" if row.method in (OURS, OUR_RECIPE) else None)
        console.print(table)


def draw_grid(plan: Plan, settings: Sequence[Setting[Entry]]) -> None:
    """Draw a row for the references of either side and for each method, a column for each shown pair."""
    pairs = plan.pairs[:SHOWN_PAIRS]
    rows = []
    for side in ("content", "style"):
        firsts = [min((plan.references(pair, 0) / side).iterdir()) for pair in pairs]
        rows.append(PreviewRow(f"{side} reference", "one of the pictures that were given", open_pictures(firsts)))
    for setting in settings:
        paths = [plan.kept_pictures(setting.method, setting.knobs, pair) for pair in pairs]
        if not all(path.is_file() for path in paths):
            continue
        note = f"hmean {setting.hmean_PS.mean():.3f}" + ("" if setting.knobs == "-" else f", {setting.knobs}")
        rows.append(PreviewRow(setting.method, note, [_first(path) for path in paths]))
    preview_grid(rows, columns=len(pairs)).save(plan.out / "grid.png")


def _first(path: Path) -> Image.Image:
    """Return the first picture of the joint prompt from the kept row."""
    [kept] = open_pictures([path])
    return kept.crop((0, 0, kept.width // (2 * PICTURES), kept.height))


def forgotten(methods: Sequence[Method]) -> list[str]:
    """Return the names whose scores `--again` drops: the methods asked for, not the references."""
    return [method.name for method in methods if method.kind is not Kind.REFERENCE]
