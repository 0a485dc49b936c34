"""Runs the paper's protocol on a user's folders and writes its tables: DINO, CLIP-I, CLIP-T and CSD for every method.

Each subject's LoRA and each style's is trained once for a seed and meets all its counterparts.
"""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from duolora.errors import TrainingDiverged
from duolora.evaluate.calling import Caller
from duolora.evaluate.host_pool import HostPool
from duolora.evaluate.intervals import bootstrap
from duolora.evaluate.jobs import Job, in_chunks, train_missing, training_costs
from duolora.evaluate.methods import OURS, Knobs, Method
from duolora.evaluate.metrics import harmonic_mean, mean_cosine
from duolora.evaluate.score_book import ScoreBook, knobs_word
from duolora.evaluate.suite_plan import SuitePlan
from duolora.evaluate.tables import OUR_RECIPE, Setting, complete_settings, difference_records, two_tables
from duolora.images import open_pictures
from duolora.method.merge_case import CONTENT, STYLE
from duolora.tiny.contact_sheet import to_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from PIL import Image

    from duolora.evaluate.folder_suite import FolderPair, FolderSuite
    from duolora.evaluate.perceptual import Clip, Csd, Dino, PictureEmbedder
    from duolora.events import Observer
    from duolora.models.base import DiffusionBase

log = logging.getLogger(__name__)

COLUMNS = (
    "method",
    "dino",
    "clip_i",
    "clip_t",
    "csd",
    "hmean",
    "hmean_lo",
    "hmean_hi",
    "trainable",
    "seconds",
    "knobs",
)

# Legend: J jobs, n pictures of each, N embedded pictures, E width of an embedding, H/W pixels.


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """What one setting of one method reached on one pair and seed, means over prompts and pictures.

    `dino` and `clip_i` are mean cosines with the subject's pictures, `csd` with the style's, `clip_t` with the prompt.
    """

    method: str
    knobs: str
    pair: str
    seed: int
    dino: float
    clip_i: float
    clip_t: float
    csd: float
    trainable: int
    seconds: float

    @property
    def hmean(self) -> float:
        """Harmonic mean of both axes, DINO for the subject and CSD for the style; 0 if one is not above 0."""
        return harmonic_mean([self.dino, self.csd])

    def record(self) -> dict[str, Any]:
        """Return the entry as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> FolderEntry:
        """Build an entry from its JSON."""
        return cls(**record)


@dataclass(frozen=True, slots=True, eq=False)
class Judges:
    """The networks that the paper measures with."""

    dino: Dino
    clip: Clip
    csd: Csd


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPlan(SuitePlan):
    """What to run: pairs and prompts from folders, and `pictures` for each prompt."""

    suite: FolderSuite
    pictures: int = 4

    def job(self, pair: FolderPair, seed: int) -> Job:
        """Return the job of one pair and seed; its LoRAs are those of all pairs with the subject or the style."""
        loras = self.out / "loras" / str(seed)
        return Job(
            pair=pair.name,
            seed=seed,
            config=self.config(pair.prompts, seed),
            pictures={CONTENT: pair.subject.pictures, STYLE: pair.style.pictures},
            loras={
                CONTENT: loras / "subjects" / f"{pair.subject.name}.safetensors",
                STYLE: loras / "styles" / f"{pair.style.name}.safetensors",
            },
        )

    def pictures_folder(self, method: str, knobs: str, pair: FolderPair, seed: int) -> Path:
        """Return where the drawn pictures of a setting, a pair and a seed lie."""
        return self.out / "pictures" / method.replace(" ", "-") / knobs / pair.name.replace(" ", "-") / str(seed)


def run_folder_suite(
    plan: FolderPlan,
    base: DiffusionBase,
    judges: Judges,
    book: ScoreBook[FolderEntry],
    observer: Observer | None = None,
) -> None:
    """Fill the book with every method's scores on every pair and seed; what is there already is not done again.

    Raises:
        InvalidImage: a picture cannot be read.
        Cancelled, OutOfMemory: as in training. A setting that diverges is logged and left out of the table.
    """
    scorer = _Scorer(judges)
    with HostPool(plan.workers) as pool:
        for seed in range(plan.seeds):
            jobs = {pair.name: plan.job(pair, seed) for pair in plan.suite.pairs}
            log.info(
                "seed %d: %d LoRAs trained", seed, train_missing(base, list(jobs.values()), plan.tenants, observer)
            )
            for pairs in in_chunks(plan.suite.pairs, plan.tenants):
                caller = Caller(base, pool)
                for method in plan.methods:
                    for knobs in method.grid:
                        missing = [
                            pair for pair in pairs if (method.name, knobs_word(knobs), pair.name, seed) not in book
                        ]
                        if missing:
                            of_pairs = [(pair, jobs[pair.name]) for pair in missing]
                            book.add(_score_setting(plan, caller, scorer, (method, knobs), of_pairs))


def _score_setting(
    plan: FolderPlan,
    caller: Caller,
    scorer: _Scorer,
    setting: tuple[Method, Knobs],
    of_pairs: Sequence[tuple[FolderPair, Job]],
) -> list[FolderEntry]:
    """Let one setting of a method merge some pairs, draw every prompt, keep the pictures and score them."""
    method, knobs = setting
    jobs = [job for _, job in of_pairs]
    try:
        called = caller.call(method, knobs, jobs)
    except TrainingDiverged as error:
        log.warning("%s with %s diverged: %s", method.name, knobs_word(knobs), error)
        return []
    drawn: list[list[tuple[str, Image.Image]]] = [[] for _ in jobs]
    for number, template in enumerate(plan.suite.templates):
        prompts = [[pair.prompt(template)] * plan.pictures for pair, _ in of_pairs]
        seeds = [1000 * job.seed + number for job in jobs]
        rgb_Jn3HW, _ = caller.draw(called.made, prompts, jobs[0].config.preview, seeds)
        for of_job, rgb_n3HW in zip(drawn, rgb_Jn3HW, strict=True):
            of_job.extend((template, to_image(rgb_3HW)) for rgb_3HW in rgb_n3HW)
    entries = []
    for index, (pair, job) in enumerate(of_pairs):
        folder = plan.pictures_folder(method.name, knobs_word(knobs), pair, job.seed)
        folder.mkdir(parents=True, exist_ok=True)
        for number, (_, picture) in enumerate(drawn[index]):
            picture.save(folder / f"{number:03d}.png")
        entries.append(
            FolderEntry(
                method=method.name,
                knobs=knobs_word(knobs),
                pair=pair.name,
                seed=job.seed,
                **scorer.score(pair, drawn[index]),
                trainable=called.trainable[index],
                seconds=called.seconds,
            )
        )
    return entries


class _Scorer:
    """Compares pictures with those of a pair's subject and style; the folders are looked at once."""

    def __init__(self, judges: Judges) -> None:
        self._judges = judges
        self._known: dict[tuple[str, Sequence[Path]], torch.Tensor] = {}

    def score(self, pair: FolderPair, drawn: Sequence[tuple[str, Image.Image]]) -> dict[str, float]:
        """Return the mean cosine over all pairs of a drawn picture and a given one, and of pictures and prompts."""
        pictures = [picture for _, picture in drawn]
        clip_NE = self._judges.clip.pictures(pictures)
        text_NE = self._judges.clip.texts([pair.plain_text(template) for template, _ in drawn])
        subject, style = pair.subject.pictures, pair.style.pictures
        return {
            "dino": mean_cosine(self._judges.dino.pictures(pictures), self._of_files("dino", subject)),
            "clip_i": mean_cosine(clip_NE, self._of_files("clip", subject)),
            "clip_t": float((clip_NE * text_NE).sum(dim=1).mean()),
            "csd": mean_cosine(self._judges.csd.pictures(pictures), self._of_files("csd", style)),
        }

    def _of_files(self, judge: str, paths: Sequence[Path]) -> torch.Tensor:
        """Embed given pictures, once."""
        if (judge, paths) not in self._known:
            embedders: dict[str, PictureEmbedder] = {
                "dino": self._judges.dino,
                "clip": self._judges.clip,
                "csd": self._judges.csd,
            }
            embedder = embedders[judge]
            self._known[judge, paths] = embedder.pictures(open_pictures(paths))
        return self._known[judge, paths]


def write_folder_reports(
    plan: FolderPlan, entries: Sequence[FolderEntry], provenance: Mapping[str, Any]
) -> dict[str, list[list[str]]]:
    """Write table.csv, recipes.csv where a whole recipe was run, and results.json.

    Returns:
        Title -> the table's cells, a row for each method by its best setting.
    """
    pairs, seeds = [pair.name for pair in plan.suite.pairs], list(range(plan.seeds))
    found = two_tables(
        complete_settings(entries, pairs, seeds),
        {method.name: method.kind for method in plan.methods},
        lambda: training_costs([plan.job(pair, seed) for pair in plan.suite.pairs for seed in seeds]),
    )
    merges, recipes = ([_cells(setting) for setting in table] for table in (found.merges, found.recipes))
    _write_csv(plan.out / "table.csv", merges)
    tables = {"Merging two LoRAs, subjects in styles from folders": merges}
    if recipes:
        _write_csv(plan.out / "recipes.csv", recipes)
        tables["Whole recipes, from pictures in folders"] = recipes
    results = {
        "provenance": dict(provenance),
        "duolora_minus_rival": difference_records(found.merges, OURS),
        "duolora_minus_rival_recipes": difference_records(found.recipes, OUR_RECIPE),
        "scores": [entry.record() for entry in entries],
    }
    (plan.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return tables


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a table with its heading."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def folder_table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    """Return a table to print."""
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(
            column, justify="left" if column in ("method", "knobs") else "right", no_wrap=column != "knobs"
        )
    for row in rows:
        table.add_row(*row, style="bold" if row[0] in (OURS, OUR_RECIPE) else None)
    return table


def _cells(setting: Setting[FolderEntry]) -> list[str]:
    """Return a setting's cells in the order of `COLUMNS`."""
    interval = bootstrap(setting.hmean_PS)
    means = [
        setting.mean(lambda entry: entry.dino),
        setting.mean(lambda entry: entry.clip_i),
        setting.mean(lambda entry: entry.clip_t),
        setting.mean(lambda entry: entry.csd),
        interval.mean,
        interval.low,
        interval.high,
    ]
    return [
        setting.method,
        *(f"{mean:.4f}" for mean in means),
        str(round(setting.mean(lambda entry: entry.trainable))),
        f"{setting.mean(lambda entry: entry.seconds):.3f}",
        setting.knobs,
    ]
