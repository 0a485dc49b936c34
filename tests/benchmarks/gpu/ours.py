"""Ours (c): the engine's LoRA step, merges and previews, through the functions that a job calls."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from duolora.generate import generate
from duolora.merge import MergeSide, merge_loras
from duolora.personalize import captions
from duolora.recipes import MERGE_RECIPES
from duolora.train import train_loras
from tests.benchmarks.gpu.timing import GIB, Stamps, matmul_tflops, measured, share_of
from tests.benchmarks.gpu.workbench import Findings, Workbench, attempted, random_lora, release_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duolora.config import MergeConfig
    from duolora.lora.weights import LoraWeights

SIDES = ("content", "style")
HALF = "paper, half the pixels a side"


def measure_matmul(bench: Workbench) -> Findings:
    """Measure what the card's matrix units give, against which steps are set; about 2 s on an H100."""
    size = bench.scale.matmul_size
    rate = matmul_tflops(bench.device, size)
    return Findings({"matmul_tflops": rate}, [{"product": f"{size}^3, bfloat16, random", "tflops": rate}])


def measure_lora_step(bench: Workbench) -> Findings:
    """Time the training step at several images a pass; about 45 s on an H100, of which 25 s are steps."""
    rows = [
        attempted({"images_a_pass": images}, partial(_lora_row, bench, images)) for images in bench.scale.images_a_pass
    ]
    timed = [row for row in rows if "s_per_image" in row]
    figures: dict[str, Any] = {"lora_steps": {row["images_a_pass"]: row["s_per_image"] for row in timed}}
    if timed:
        best = min(timed, key=lambda row: row["s_per_image"])
        figures["lora_step_s_per_image"] = best["s_per_image"]
        figures["lora_step_images_a_pass"] = best["images_a_pass"]
        figures["lora_step_share_of_matmul_rate"] = best["share_of_matmul_rate"]
    note = "One image a pass is one LoRA; more are shared by a content and a style LoRA, trained in the same passes."
    return Findings(figures, rows, note)


def _lora_row(bench: Workbench, images: int) -> dict[str, Any]:
    """Time one training of a few steps."""
    scale = bench.scale
    sides, batch = (SIDES, images // 2) if images > 1 else (SIDES[:1], 1)
    tasks = [bench.task(side, steps=scale.lora_steps, batch_size=batch) for side in sides]
    stamps = Stamps(bench.device, "training", scale.stamp_every, scale.stamp_skip)
    with measured(bench.device) as region:
        train_loras(bench.base(), tasks, stamps)
    release_memory()
    s_per_image = stamps.step_s() / images
    return {
        "s_per_step": stamps.step_s(),
        "s_per_image": s_per_image,
        "share_of_matmul_rate": share_of(bench.figures.get("matmul_tflops"), s_per_image),
        "peak_gib": region.peak_gib,
        "reserved_gib": reserved_gib(bench.device),
        "whole_training_s": region.seconds,
    }


def reserved_gib(device: torch.device) -> float:
    """Return the most memory that torch's allocator had taken of the device."""
    return torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else 0.0


def merge_sides(bench: Workbench, loras: Mapping[str, LoraWeights]) -> dict[str, MergeSide]:
    """Return the sides of a merge with the job's pictures and captions."""
    prompts = bench.job().prompts
    return {
        side: MergeSide(lora, bench.pictures(side), captions(side, prompts, len(bench.pictures(side))))
        for side, lora in loras.items()
    }


def merged(
    bench: Workbench,
    loras: Mapping[str, LoraWeights],
    config: MergeConfig,
    observer: Stamps | None = None,
    *,
    smaller: int = 1,
) -> LoraWeights:
    """Merge two LoRAs as a job does, or from pictures of so many times fewer pixels a side."""
    return merge_loras(
        bench.base(),
        merge_sides(bench, loras),
        bench.job().prompts.joint,
        config,
        resolution_px=bench.scale.resolution_px // smaller,
        observer=observer,
    ).weights


def merge_config(bench: Workbench, recipe: str) -> MergeConfig:
    """Return a recipe of a merge; where it takes steps, as many as this run measures."""
    config = MERGE_RECIPES[recipe]
    return config.model_copy(update={"steps": bench.scale.merge_steps}) if config.steps else config


def measure_merges(bench: Workbench) -> Findings:
    """Time whole merges by recipe, from two LoRAs and pictures to one LoRA; about 150 s on an H100.

    Each runs twice, so that kernels are loaded and attention's plans are made when it counts: a worker stays warm.
    """
    loras = {side: random_lora(bench.base(), bench.scale.rank, seed) for seed, side in enumerate(SIDES)}
    rows = [
        attempted({"recipe": recipe, "round": turn}, partial(_merge_row, bench, loras, recipe))
        for recipe, turn in (
            ("instant", 1),
            ("instant", 2),
            ("duolora", 1),
            ("duolora", 2),
            ("paper", 1),
            ("paper", 2),
            (HALF, 1),
            (HALF, 2),
        )
    ]
    named = {
        "instant": "instant_merge_s",
        "duolora": "duolora_merge_s",
        "paper": "merge_100_s",
        HALF: "merge_100_at_half_resolution_s",
    }
    figures = {named[row["recipe"]]: row["seconds"] for row in rows if "seconds" in row}
    return Findings(figures, rows, "Seconds are of the whole merge: encoding, teachers, steps, folding the masks in.")


def _merge_row(bench: Workbench, loras: Mapping[str, LoraWeights], recipe: str) -> dict[str, Any]:
    """Time one merge."""
    config = merge_config(bench, recipe.partition(",")[0])
    every = max(1, config.steps // 10)
    stamps = Stamps(bench.device, "merging", every, min(every, bench.scale.stamp_skip))
    with measured(bench.device) as region:
        merged(bench, loras, config, stamps, smaller=2 if recipe == HALF else 1)
    release_memory()
    return {
        "steps": config.steps,
        "seconds": region.seconds,
        "s_per_step": stamps.step_s() if len(stamps.times) > 1 else None,
        "peak_gib": region.peak_gib,
    }


def measure_previews(bench: Workbench) -> Findings:
    """Time the sampling of a job's previews with a LoRA, decoding included; about 15 s on an H100."""
    config = bench.job().preview
    lora = random_lora(bench.base(), 2 * bench.scale.rank, seed=2)
    warm = config.model_copy(update={"steps": 1})

    def sampled() -> dict[str, Any]:
        generate(bench.base(), [bench.job().prompts.joint], warm, lora)
        with measured(bench.device) as region:
            generate(bench.base(), [bench.job().prompts.joint], config, lora)
        return {"seconds": region.seconds, "peak_gib": region.peak_gib}

    row = attempted({"pictures": config.images, "steps": config.steps}, sampled)
    release_memory()
    figures = {"previews_s": row["seconds"]} if "seconds" in row else {}
    return Findings(figures, [row], f"Guidance {config.guidance_scale}: two samples a picture in every step.")
