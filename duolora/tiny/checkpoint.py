"""Training state on disk: named tensors in numbered safetensors files small enough to travel, and the counters."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

MAX_PIECE_BYTES = 15_000_000


def save_pieces(tensors: dict[str, Tensor], counters: dict[str, int], folder: Path) -> None:
    """Write `tensors` (any dtype) and `counters` to `folder`, replacing it only when all is written."""
    fresh = folder.with_name(folder.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    piece: dict[str, Tensor] = {}
    piece_bytes = pieces = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if piece and piece_bytes + size > MAX_PIECE_BYTES:
            save_file(piece, fresh / f"piece-{pieces:03}.safetensors")
            piece, piece_bytes, pieces = {}, 0, pieces + 1
        piece[name] = tensor.detach().cpu().contiguous()
        piece_bytes += size
    save_file(piece, fresh / f"piece-{pieces:03}.safetensors")
    (fresh / "counters.json").write_text(json.dumps(counters) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def load_pieces(folder: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Read back what `save_pieces` wrote, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("piece-*.safetensors")):
        tensors.update(load_file(path))
    counters = json.loads((folder / "counters.json").read_text(encoding="utf-8"))
    return tensors, {name: int(value) for name, value in counters.items()}
