"""Samples a fixed sheet of prompts from a base in training, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duolora.tiny.architecture import LATENT_CHANNELS, RESOLUTION_PX, TIME_IDS, VAE_FACTOR, Components
from duolora.tiny.captions import STYLES, caption, training_colours
from duolora.tiny.contact_sheet import write_contact_sheet
from duolora.tiny.noise_schedule import sample_latents
from duolora.tiny.tokenizer import END_TOKEN, MAX_TOKENS, START_TOKEN, WordEncoder

if TYPE_CHECKING:
    from pathlib import Path

SUBJECTS = ("tiger face", "bicycle", "apple", "house", "anchor", "rooster", "skull", "violin")
GUIDANCE = 5.0
STEPS = 25


def preview_prompts() -> list[str]:
    """Return the prompts, 16 to a row: each subject plain, by its class, and in every style."""
    prompts = []
    for row, subject in enumerate(SUBJECTS):
        prompts += [caption(subject), caption("sbu animal" if row % 2 else "animal")]
        for column, style in enumerate(STYLES):
            colours = training_colours(style)
            prompts.append(caption(subject, style, colours[(row + column) % len(colours)]))
    return prompts


def encode_prompts(prompts: list[str]) -> Tensor:
    """Return token ids (B,L) of prompts in caption words."""
    encoder = WordEncoder()
    start, end = encoder.vocabulary[START_TOKEN], encoder.vocabulary[END_TOKEN]
    rows = [[start, *encoder.encode(prompt)][: MAX_TOKENS - 1] for prompt in prompts]
    return torch.tensor([row + [end] * (MAX_TOKENS - len(row)) for row in rows])


@torch.no_grad()
def write_preview(components: Components, path: Path) -> None:
    """Sample every prompt once with fixed noise and write the sheet."""
    device = next(components.unet.parameters()).device
    prompts = preview_prompts()
    ids_BL = encode_prompts([*prompts, *[""] * len(prompts)]).to(device)
    time_ids = torch.tensor([TIME_IDS], dtype=torch.float32, device=device).expand(len(ids_BL), -1)
    first = components.text_encoder(ids_BL, output_hidden_states=True)
    second = components.text_encoder_2(ids_BL, output_hidden_states=True)
    text_BLD = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    added = {"text_embeds": second.text_embeds, "time_ids": time_ids}

    def predict_noise(latent_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        twice = torch.cat([latent_BCHW, latent_BCHW])
        noise = components.unet(twice, timesteps_B.repeat(2), text_BLD, added_cond_kwargs=added, return_dict=False)[0]
        with_text, without = noise.chunk(2)
        guided: Tensor = without + GUIDANCE * (with_text - without)
        return guided

    side = RESOLUTION_PX // VAE_FACTOR
    generator = torch.Generator().manual_seed(0)
    start_BCHW = torch.randn(len(prompts), LATENT_CHANNELS, side, side, generator=generator).to(device)
    latent_BCHW = sample_latents(predict_noise, start_BCHW, STEPS)
    rgb_B3HW = components.vae.decode(latent_BCHW / components.vae.config.scaling_factor).sample / 2 + 0.5
    write_contact_sheet(rgb_B3HW, path, columns=2 + len(STYLES))
