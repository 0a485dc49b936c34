"""How long a merge takes on the tiny base, recipe by recipe, on the CPU: the engine's work alone, base loaded.

    python -m tests.benchmarks.merging content_lora.safetensors style_lora.safetensors

Prints, for each recipe, the median of a few merges in seconds of wall clock and of processor time, with the pictures
that the package ships; `make demo` leaves two LoRAs in `out/`. Processor time says what a busy machine would have made
of it alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from duolora.config import Prompts
from duolora.images import list_pictures
from duolora.lora.read import read_lora
from duolora.merge import MergeSide, merge_loras
from duolora.models.registry import load_base
from duolora.personalize import captions
from duolora.recipes import EMBEDDED, MERGE_RECIPES, tiny
from duolora.runtime import choose_runtime

SAMPLES = Path("duolora/tiny/samples")
TIMES = {"duolora": 5, "instant": 5, "paper": 1}


def main() -> None:
    """Time the recipes of a merge by rank masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("content", type=Path)
    parser.add_argument("style", type=Path)
    arguments = parser.parse_args()
    base = load_base(EMBEDDED, choose_runtime("cpu"))
    prompts = Prompts(subject_class="fox")
    sides = {}
    for side, file in (("content", arguments.content), ("style", arguments.style)):
        pictures = list_pictures(SAMPLES / side)
        sides[side] = MergeSide(read_lora(file), pictures, captions(side, prompts, len(pictures)))
    resolution_px = tiny(EMBEDDED, prompts).content.resolution_px
    for name, times in TIMES.items():
        wall, spent = [], []
        for _ in range(times):
            started, used = time.monotonic(), time.process_time()
            merge_loras(base, sides, prompts.joint, MERGE_RECIPES[name], resolution_px=resolution_px)
            wall.append(time.monotonic() - started)
            spent.append(time.process_time() - used)
        medians = f"{statistics.median(wall):7.2f} s, processor {statistics.median(spent):7.2f} s"
        sys.stdout.write(f"{name:8s} {medians}, {times} times\n")


if __name__ == "__main__":
    main()
