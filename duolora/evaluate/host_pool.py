"""Runs merges that need no GPU side by side on the processor's cores, one case each.

A worker reads the two LoRAs from their files and gives the merged one back as safetensors bytes: handing tensors over
one by one would take a file descriptor each.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Self

import torch
from safetensors.torch import load, save

from duolora.evaluate.jobs import case_of_loras
from duolora.lora.read import read_lora
from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from duolora.evaluate.methods import Call, Knobs

MOST_WORKERS = 16


class HostPool:
    """A pool of processes that lives as long as it is entered."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or min(MOST_WORKERS, os.cpu_count() or 1)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Enter; processes start with the first merge."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def merge(
        self, call: Call, knobs: Knobs, cases: Sequence[tuple[Mapping[str, Path], int]]
    ) -> tuple[list[LoraWeights], float]:
        """Merge cases, each a side's file by side and a seed.

        Returns:
            The merged LoRAs, and the mean seconds of one merge on one core.
        """
        if self._pool is None:
            spawning = multiprocessing.get_context("spawn")  # a fork would carry the state of CUDA along
            self._pool = ProcessPoolExecutor(self._workers, mp_context=spawning, initializer=_use_one_core)
        futures = [self._pool.submit(_merge_one, call, dict(knobs), dict(files), seed) for files, seed in cases]
        results = [future.result() for future in futures]
        return [_unpack(data) for data, _ in results], sum(seconds for _, seconds in results) / len(results)


def _use_one_core() -> None:
    """Keep a worker to the core it stands for."""
    torch.set_num_threads(1)


def _merge_one(call: Call, knobs: Knobs, files: Mapping[str, Path], seed: int) -> tuple[bytes, float]:
    """Merge one case in a worker; return the result and its seconds."""
    case = case_of_loras({side: read_lora(path) for side, path in files.items()}, seed)
    started = time.monotonic()
    merged: LoraWeights = call(None, [case], **knobs)[0]
    seconds = time.monotonic() - started
    return _pack(merged), seconds


def _pack(lora: LoraWeights) -> bytes:
    """Write a LoRA with alpha = rank as bytes."""
    tensors = {}
    for name, layer in lora.folded().layers.items():
        tensors[f"{name}.down"] = layer.down_RI.contiguous()
        tensors[f"{name}.up"] = layer.up_OR.contiguous()
    return save(tensors)


def _unpack(data: bytes) -> LoraWeights:
    """Read what `_pack` wrote."""
    tensors = load(data)
    names = sorted(key.removesuffix(".down") for key in tensors if key.endswith(".down"))
    return LoraWeights(
        {
            name: LoraLayer(down_RI := tensors[f"{name}.down"], tensors[f"{name}.up"], float(len(down_RI)))
            for name in names
        }
    )
