"""The sheet of reconstructions: every style, faithful, and drawn by the VAE that ships."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from duolora.tiny.base import base_path
from duolora.tiny.captions import STYLES
from duolora.tiny.draw_reconstructions import PLAIN, reconstruct, reconstructions_path, shown_pictures


def test_the_shipped_vae_keeps_every_style_and_the_sheet_shows_it():
    torch.set_num_threads(1)
    rgb_B3HW = shown_pictures()
    assert rgb_B3HW.shape == (PLAIN + len(STYLES), 3, 64, 64)
    again_B3HW = reconstruct(AutoencoderKL.from_pretrained(base_path() / "vae").eval(), rgb_B3HW)
    assert (again_B3HW - rgb_B3HW).abs().mean(dim=(1, 2, 3)).max() < 0.05
    assert reconstructions_path().stat().st_size < 200_000
    with Image.open(reconstructions_path()) as sheet:
        columns = len(rgb_B3HW)
        assert sheet.size == (columns * 66 * 2, 2 * 66 * 2)
        small = np.asarray(sheet.resize((columns * 66, 2 * 66), Image.Resampling.NEAREST), dtype=np.float64) / 255
    cells = small.reshape(2, 66, columns, 66, 3)[:, 1:-1, :, 1:-1].transpose(0, 2, 4, 1, 3)
    assert np.abs(cells[0] - rgb_B3HW.numpy()).max() < 0.01
    assert np.abs(cells[1] - again_B3HW.numpy()).max() < 0.02
