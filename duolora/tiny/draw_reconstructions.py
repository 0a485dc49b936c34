"""Draws what the base's VAE makes of true pictures: `reconstructions.png`, originals above their reconstructions.

`python -m duolora.tiny.draw_reconstructions` rewrites it. Two plain subjects, then one in every style.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from diffusers import AutoencoderKL

from duolora.tiny.base import base_path
from duolora.tiny.captions import STYLES, training_colours
from duolora.tiny.contact_sheet import write_contact_sheet
from duolora.tiny.held_out import companion_subjects
from duolora.tiny.world import draw

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

PLAIN = 2
ZOOM = 2

# Legend: B pictures, H/W pixels; values in [0, 1].


def shown_pictures() -> Tensor:
    """Return the true pictures, (B,3,H,W), the same in every call."""
    subjects = companion_subjects()
    pictures = [draw(subject, seed=index) for index, subject in enumerate(subjects[:PLAIN])]
    for index, style in enumerate(STYLES, start=PLAIN):
        colours = training_colours(style)
        pictures.append(draw(subjects[index % len(subjects)], style, colours[index % len(colours)], seed=index))
    return torch.stack(pictures)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, rgb_B3HW: Tensor) -> Tensor:
    """Return pictures encoded to the means of their latents, and decoded, (B,3,H,W)."""
    latent_BCHW = vae.encode(rgb_B3HW * 2 - 1).latent_dist.mean
    return cast("Tensor", vae.decode(latent_BCHW).sample / 2 + 0.5).clamp(0, 1)


def reconstructions_path() -> Path:
    """Return where the sheet lies."""
    return base_path().with_name("reconstructions.png")


def main() -> None:
    """Write the sheet."""
    vae = AutoencoderKL.from_pretrained(base_path() / "vae").eval()
    rgb_B3HW = shown_pictures()
    sheet_B3HW = torch.cat([rgb_B3HW, reconstruct(vae, rgb_B3HW)])
    write_contact_sheet(sheet_B3HW, reconstructions_path(), columns=len(rgb_B3HW), zoom=ZOOM)


if __name__ == "__main__":
    main()
