"""Trains the autoencoder of the tiny base on pictures of the world.

    python -m duolora.tiny.pretrain_vae --sheet training.png --seconds 200 --out DIR [--resume DIR/state] [--compile]

Writes DIR/vae (diffusers folder of the averaged weights, latents scaled to unit variance), DIR/state (to resume) and
DIR/vae.png (pictures above their reconstructions).
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from duolora.tiny.architecture import build_vae
from duolora.tiny.atlas import Atlas, read_sheet, training_names
from duolora.tiny.checkpoint import load_pieces, save_pieces
from duolora.tiny.contact_sheet import write_contact_sheet
from duolora.tiny.trainee import Stepper, Trainee
from duolora.tiny.world import Dice, TrainingWorld

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

log = logging.getLogger(__name__)

PEAK_LR = 1.5e-3
KL_WEIGHT = 2e-4
PLAIN, PER_STYLE = 60, 14


def reconstruction_loss(got_B3HW: Tensor, true_B3HW: Tensor) -> Tensor:
    """Return mean absolute error of values plus that of differences between neighbours, at one, two and four pixels."""
    error = got_B3HW.float() - true_B3HW
    loss: Tensor = error.abs().mean()
    for weight in (1.0, 0.5, 0.25):
        across = error[..., :, 1:] - error[..., :, :-1]
        down = error[..., 1:, :] - error[..., :-1, :]
        loss = loss + weight * (across.abs().mean() + down.abs().mean())
        error = functional.avg_pool2d(error, 2)
    return loss


class VaeLesson:
    """One training step of the autoencoder on freshly drawn pictures."""

    def __init__(self, vae: AutoencoderKL, world: TrainingWorld, trainee: Trainee, per_style: int, plain: int) -> None:
        self.vae, self.world, self.trainee = vae, world, trainee
        self.per_style, self.plain = per_style, plain
        self.dice = Dice(trainee.device)

    def step(self) -> Tensor:
        """Draw, reconstruct, learn; return the loss."""
        with torch.no_grad():
            rgb_B3HW, _ = self.world.sample(self.dice, self.plain, self.per_style)
            rgb_B3HW = (2 * rgb_B3HW - 1).contiguous(memory_format=torch.channels_last)
        device_type = self.trainee.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
            mean, log_variance = self.vae.encode(rgb_B3HW).latent_dist.parameters.float().chunk(2, dim=1)
            log_variance = log_variance.clamp(-30, 20)
            latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            got_B3HW = self.vae.decode(latent).sample
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        loss: Tensor = reconstruction_loss(got_B3HW, rgb_B3HW) + KL_WEIGHT * divergence
        self.trainee.learn(loss)
        return loss.detach()


@torch.no_grad()
def measure_latent_std(vae: AutoencoderKL, world: TrainingWorld, batches: int = 8) -> float:
    """Return the standard deviation of the latents of `batches` drawn batches."""
    dice = Dice(world.rgba_G4HW.device)
    latents = [vae.encode(2 * world.sample(dice, PLAIN, PER_STYLE)[0] - 1).latent_dist.mean for _ in range(batches)]
    return float(torch.cat(latents).float().std())


@torch.no_grad()
def write_reconstructions(vae: AutoencoderKL, world: TrainingWorld, path: Path) -> float:
    """Write rows of pictures above rows of their reconstructions; return the mean squared error in [0,1]."""
    rgb_B3HW, _ = world.sample(Dice(world.rgba_G4HW.device), 30, 15)
    rgb_B3HW = rgb_B3HW.clone()
    got_B3HW = vae.decode(vae.encode(2 * rgb_B3HW - 1).latent_dist.mean).sample / 2 + 0.5
    rows = [row for pair in zip(rgb_B3HW.split(15), got_B3HW.split(15), strict=True) for row in pair]
    write_contact_sheet(torch.cat(rows), path, columns=15)
    return float(functional.mse_loss(got_B3HW.clamp(0, 1), rgb_B3HW))


def finish(trainee: Trainee, world: TrainingWorld, out: Path) -> None:
    """Write the averaged weights as a diffusers folder with their scaling factor, and the sheet."""
    final = build_vae().to(trainee.device)
    final.load_state_dict(trainee.averaged("vae"))
    scaling_factor = round(1 / measure_latent_std(final, world), 5)
    final.register_to_config(scaling_factor=scaling_factor)
    error = write_reconstructions(final, world, out / "vae.png")
    final.save_pretrained(out / "vae")
    log.info("vae: scaling factor %.5f, mean squared error %.6f", scaling_factor, error)


def train(
    atlas: Atlas,
    out: Path,
    *,
    device: torch.device,
    total_steps: int | None,
    seconds: float,
    resume: Path | None,
    compiled: bool = False,
    batch: tuple[int, int] = (PLAIN, PER_STYLE),
) -> None:
    """Train until `seconds` have passed or `total_steps` are done; without a total, plan as many as fit."""
    vae = build_vae().to(device, memory_format=torch.channels_last)
    if compiled:
        vae.encoder.compile()
        vae.decoder.compile()
    trainee = Trainee({"vae": vae}, PEAK_LR, device)
    world = TrainingWorld(atlas, device)
    stepper = Stepper(VaeLesson(vae, world, trainee, batch[1], batch[0]).step, device)
    step = 0
    if resume is not None:
        tensors, counters = load_pieces(resume)
        trainee.load_state(tensors)
        step = counters["step"]
        total_steps = counters["total_steps"] if total_steps is None else total_steps
    started, timed_from = time.monotonic(), 0.0
    planned = total_steps or 1_000_000
    while step < planned and time.monotonic() - started < seconds:
        trainee.set_progress(step, planned)
        loss = stepper()
        step += 1
        if total_steps is None and step == 50:
            float(loss)
            timed_from = time.monotonic()
        if total_steps is None and step == 150:
            float(loss)
            pace = (time.monotonic() - timed_from) / 100
            planned = total_steps = step + int((seconds - (time.monotonic() - started)) / pace)
            log.info("vae: %.1f steps/s, %d planned", 1 / pace, planned)
        if step % 100 == 0:
            log.info("vae: step %d loss %.5f at %.0f s", step, float(loss), time.monotonic() - started)
    save_pieces(trainee.state(), {"step": step, "total_steps": planned}, out / "state")
    finish(trainee, world, out)


def main() -> None:
    """Train the autoencoder from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--total-steps", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    train(
        read_sheet(arguments.sheet, training_names()),
        arguments.out,
        device=torch.device(arguments.device),
        total_steps=arguments.total_steps,
        seconds=arguments.seconds,
        resume=arguments.resume,
        compiled=arguments.compile,
    )


if __name__ == "__main__":
    main()
