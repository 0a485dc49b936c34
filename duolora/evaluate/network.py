"""The evaluator: a small network that says how alike two pictures are in subject and in style.

Two heads share the early layers. The content embedding names the subject whatever the style; the style embedding names
style and colour whatever the subject. It knows every glyph and every combination, those the base never saw included,
so it can judge what a LoRA adds to the base. `train_evaluator` made the shipped weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

EMBEDDING_WIDTH = 128
STEM_WIDTH, FINE_WIDTH, MIDDLE_WIDTH, COARSE_WIDTH = 32, 64, 128, 144
GROUPS = 8

# Legend: B pictures, C channels, H/W pixels, E width of an embedding, F width of a pooled feature.


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip; normalised on the branch only, so that plain colour passes through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(GROUPS, width)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(GROUPS, width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features of the same shape."""
        y_BCHW = self.first(functional.silu(self.first_norm(x_BCHW)))
        y_BCHW = self.second(functional.silu(self.second_norm(y_BCHW)))
        summed: Tensor = x_BCHW + y_BCHW
        return summed


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Return a stage that halves the resolution."""
    halving = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    return nn.Sequential(halving, *(ResidualBlock(outputs) for _ in range(blocks)))


def pooled_statistics(x_BCHW: Tensor) -> Tensor:
    """Return mean and standard deviation of every channel over the picture (B, 2 C): what is there, not where."""
    x_BCL = x_BCHW.float().flatten(2)
    return torch.cat([x_BCL.mean(dim=2), (x_BCL.var(dim=2, unbiased=False) + 1e-6).sqrt()], dim=1)


class Evaluator(nn.Module):
    """Pictures (B,3,64,64) in [0,1] -> unit-norm content embedding and style embedding, (B,128) each, float32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM_WIDTH, 3, padding=1)
        self.fine = _stage(STEM_WIDTH, FINE_WIDTH, 2)
        self.middle = _stage(FINE_WIDTH, MIDDLE_WIDTH, 2)
        self.coarse = _stage(MIDDLE_WIDTH, COARSE_WIDTH, 2)
        self.content_head = nn.Sequential(nn.LayerNorm(2 * COARSE_WIDTH), nn.Linear(2 * COARSE_WIDTH, EMBEDDING_WIDTH))
        self.style_head = nn.Sequential(
            nn.LayerNorm(2 * (FINE_WIDTH + MIDDLE_WIDTH)),
            nn.Linear(2 * (FINE_WIDTH + MIDDLE_WIDTH), EMBEDDING_WIDTH),
            nn.SiLU(),
            nn.Linear(EMBEDDING_WIDTH, EMBEDDING_WIDTH),
        )

    def maps(self, rgb_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the trunk's features at a half, a quarter and an eighth of the resolution, each (B,C,H,W)."""
        fine_BCHW = self.fine(self.stem(2 * rgb_B3HW - 1))
        middle_BCHW = self.middle(fine_BCHW)
        return fine_BCHW, middle_BCHW, self.coarse(middle_BCHW)

    def embed(self, maps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the content embedding and the style embedding (B,E) of what `maps` returned."""
        fine_BCHW, middle_BCHW, coarse_BCHW = maps
        peak_BF = coarse_BCHW.float().amax(dim=(2, 3))
        content_BE = self.content_head(torch.cat([coarse_BCHW.float().mean(dim=(2, 3)), peak_BF], dim=1))
        style_BE = self.style_head(torch.cat([pooled_statistics(fine_BCHW), pooled_statistics(middle_BCHW)], dim=1))
        return functional.normalize(content_BE.float(), dim=1), functional.normalize(style_BE.float(), dim=1)

    def forward(self, rgb_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the content embedding and the style embedding (B,E)."""
        return self.embed(self.maps(rgb_B3HW))


def weights_path() -> Path:
    """Return where the shipped weights lie."""
    return Path(__file__).with_name("evaluator.safetensors")


def save_evaluator(weights: dict[str, Tensor], path: Path) -> None:
    """Write weights in float16."""
    save_file({name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in weights.items()}, path)


def load_evaluator(device: torch.device, path: Path | None = None) -> Evaluator:
    """Return the evaluator for judging (float32, no gradients); the shipped one unless `path` names another."""
    evaluator = Evaluator()
    weights = load_file(path or weights_path())
    evaluator.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return evaluator.to(device).eval().requires_grad_(False)


@cache
def shipped_evaluator(device: torch.device) -> Evaluator:
    """Return the shipped evaluator on a device, loaded once per process."""
    return load_evaluator(device)
