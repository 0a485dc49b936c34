"""The two LoRAs of every pair and seed: trained once, many pairs in the same passes, and kept on disk."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duolora.baselines.recipe_case import RecipeCase
from duolora.evaluate.truth_suite import PairPictures, TruthPair, write_pictures
from duolora.images import load_pictures
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers
from duolora.merge_case import EncodedSide, MergeCase
from duolora.personalize import captions
from duolora.priors import Role
from duolora.recipes import resolve
from duolora.train import LoraTask, train_tenants

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from duolora.config import PersonalizeConfig
    from duolora.evaluate.methods import Method
    from duolora.events import Observer
    from duolora.lora.weights import LoraWeights
    from duolora.models.sdxl import SdxlBase

SIDES = (Role.CONTENT.value, Role.STYLE.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run: pairs, seeds 0 to `seeds - 1`, methods, how many pairs share a pass, and where everything goes.

    `recipe` decides how LoRAs are trained and pictures sampled, None for the base's own; `lora_steps` overrides it.
    `workers` is the number of processes for merges that need no GPU, None for as many as there are cores.
    """

    pairs: Sequence[TruthPair]
    seeds: int
    methods: Sequence[Method]
    tenants: int
    out: Path
    base_name: str
    recipe: str | None = None
    lora_steps: int | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One pair with one seed: its configuration, its pictures, and where its LoRAs lie."""

    pair: TruthPair
    seed: int
    config: PersonalizeConfig
    pictures: PairPictures
    folder: Path

    @property
    def tasks(self) -> list[LoraTask]:
        """The trainings of both sides, as a job of the service would do them."""
        prompts = self.config.prompts
        of_side = {SIDES[0]: self.pictures.content, SIDES[1]: self.pictures.style}
        settings = {SIDES[0]: self.config.content, SIDES[1]: self.config.style}
        return [
            LoraTask(side, pictures, captions(side, prompts, len(pictures)), settings[side])
            for side, pictures in of_side.items()
        ]


def pair_config(plan: Plan, pair: TruthPair, seed: int) -> PersonalizeConfig:
    """Return the configuration of one pair and seed.

    Raises:
        InvalidConfig: the recipe is unknown.
    """
    steps = plan.lora_steps
    return resolve(plan.recipe, plan.base_name, pair.prompts, content_steps=steps, style_steps=steps, seed=seed)


def make_job(plan: Plan, pair: TruthPair, seed: int) -> Job:
    """Write the pair's pictures under the plan's folder and return its job."""
    pictures = write_pictures(pair, seed, plan.out / "references" / str(seed) / pair.name)
    return Job(pair, seed, pair_config(plan, pair, seed), pictures, _lora_folder(plan.out, pair.name, seed))


def training_seconds(out: Path, pairs: Sequence[str], seeds: Sequence[int]) -> dict[tuple[str, int], float]:
    """Return how long training both LoRAs took, for each (pair, seed): its share of the passes it was trained in."""
    seconds = {}
    for pair in pairs:
        for seed in seeds:
            record = json.loads((_lora_folder(out, pair, seed) / "training.json").read_text(encoding="utf-8"))
            seconds[pair, seed] = float(record["seconds"])
    return seconds


def train_missing(base: SdxlBase, jobs: Sequence[Job], observer: Observer | None = None) -> int:
    """Train the LoRAs of all jobs that have none yet, together; return for how many."""
    missing = [job for job in jobs if not (job.folder / "training.json").is_file()]
    if not missing:
        return 0
    started = time.monotonic()
    trained = train_tenants(base, [job.tasks for job in missing], observer)
    seconds = (time.monotonic() - started) / len(missing)
    for job, loras in zip(missing, trained, strict=True):
        job.folder.mkdir(parents=True, exist_ok=True)
        for side, lora in loras.items():
            write_diffusers(lora, job.folder / f"{side}.safetensors")
        record = {"seconds": seconds, "trained_together": len(missing)}
        (job.folder / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")  # last: all is there
    return len(missing)


def recipe_case(job: Job) -> RecipeCase:
    """Return what a recipe that trains from pictures may look at."""
    tasks = job.tasks
    return RecipeCase(
        {task.side: task.pictures for task in tasks},
        {task.side: task.captions for task in tasks},
        job.config.merge.seed,
    )


def merge_case(base: SdxlBase, job: Job) -> MergeCase:
    """Read the LoRAs of a job and encode what a merge may look at."""
    layers = base.layers()
    tasks = {task.side: task for task in job.tasks}
    return MergeCase(
        loras={side: read_lora(job.folder / f"{side}.safetensors", layers) for side in SIDES},
        encoded={
            side: EncodedSide(
                base.encode_pictures(load_pictures(task.pictures, task.config.resolution_px)),
                base.encode_prompts(task.captions),
            )
            for side, task in tasks.items()
        },
        joint=base.encode_prompts([job.config.prompts.joint]),
        seed=job.config.merge.seed,
    )


def read_side(folder: Path, side: str) -> LoraWeights:
    """Read one side's LoRA from the folder of a job."""
    return read_lora(folder / f"{side}.safetensors")


def _lora_folder(out: Path, pair: str, seed: int) -> Path:
    """Return where the LoRAs of one pair and seed lie."""
    return out / "loras" / str(seed) / pair
