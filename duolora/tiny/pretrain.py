r"""Trains the U-Net and the text encoders of the tiny base on captioned pictures of the world.

    python -m duolora.tiny.pretrain --sheet training.png --vae DIR/vae --out DIR --seconds 540 --total-seconds 1200 \\
        [--resume DIR/state | --start BASE_FOLDER --peak-lr 4e-4] [--compile]

Drawing, autoencoder, U-Net, optimiser and averaging are one CUDA graph. Writes DIR/state (to resume exactly), and every
`--export-seconds` DIR/export (averaged weights in float16, for `assemble`) and DIR/preview.png.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from duolora.losses import denoising_loss
from duolora.tiny.architecture import TIME_IDS, Components, build_components
from duolora.tiny.atlas import Atlas, read_sheet, training_names
from duolora.tiny.caption_tokens import CaptionWriter
from duolora.tiny.checkpoint import load_pieces, save_pieces
from duolora.tiny.noise_schedule import sdxl_schedule
from duolora.tiny.preview import write_preview
from duolora.tiny.trainee import Stepper, Trainee
from duolora.tiny.world import Dice, TrainingWorld

log = logging.getLogger(__name__)

PEAK_LR = 8e-4
SNR_CAP = 5.0
TRAINED = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how large.

    A batch is `plain + 14 * per_style` pictures. `seconds` is the length of this piece; `total_steps` that of the
    whole, or None for as many as fit in `total_seconds`.
    """

    plain: int = 204
    per_style: int = 54
    seconds: float = 540.0
    total_seconds: float = 540.0
    total_steps: int | None = None
    export_seconds: float = 240.0
    peak_lr: float = PEAK_LR


class BaseLesson:
    """One training step of U-Net and text encoders on freshly drawn, captioned pictures."""

    def __init__(self, components: Components, world: TrainingWorld, trainee: Trainee, plan: Plan) -> None:
        self.components, self.world, self.trainee, self.plan = components, world, trainee, plan
        device = trainee.device
        self.dice = Dice(device)
        self.captions = CaptionWriter(world.names, device)
        self.schedule = sdxl_schedule(device)
        self.time_ids = torch.tensor([TIME_IDS], dtype=torch.float32, device=device)

    def _draw_latents(self) -> tuple[Tensor, Tensor]:
        rgb_B3HW, labels = self.world.sample(self.dice, self.plan.plain, self.plan.per_style)
        vae = self.components.vae
        mean, log_variance = vae.encode((2 * rgb_B3HW - 1).to(vae.dtype)).latent_dist.parameters.float().chunk(2, dim=1)
        latent = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * torch.randn_like(mean)
        return latent * vae.config.scaling_factor, self.captions.write(labels, self.dice)

    def step(self) -> Tensor:
        """Draw, encode, noise, predict, learn; return the weighted loss."""
        with torch.no_grad():
            latent_BCHW, ids_BL = self._draw_latents()
            timestep_B = self.dice.below(self.schedule.timesteps, latent_BCHW.shape[0])
            noise_BCHW = torch.randn_like(latent_BCHW)
            noisy_BCHW = self.schedule.add_noise(latent_BCHW, noise_BCHW, timestep_B)
        predicted_BCHW = predict(self.components, noisy_BCHW, timestep_B, ids_BL, self.time_ids)
        loss = denoising_loss(predicted_BCHW, noise_BCHW, self.schedule.snr(timestep_B), SNR_CAP).mean()
        self.trainee.learn(loss)
        return loss.detach()


def predict(components: Components, noisy_BCHW: Tensor, timestep: Tensor, ids_BL: Tensor, time_ids: Tensor) -> Tensor:
    """Return the predicted noise for latents with captions; text goes in as in StableDiffusionXLPipeline."""
    with torch.autocast(ids_BL.device.type, torch.bfloat16, enabled=ids_BL.device.type == "cuda"):
        first = components.text_encoder(ids_BL, output_hidden_states=True)
        second = components.text_encoder_2(ids_BL, output_hidden_states=True)
    dtype = components.unet.dtype
    text_BLD = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1).to(dtype)
    added = {
        "text_embeds": second.text_embeds.to(dtype),
        "time_ids": time_ids.expand(ids_BL.shape[0], -1),
    }
    predicted: Tensor = components.unet(
        noisy_BCHW.to(dtype), timestep, text_BLD, added_cond_kwargs=added, return_dict=False
    )[0]
    return predicted


class Pretraining:
    """One piece of pretraining: the modules, the step, and what is written when."""

    def __init__(
        self, atlas: Atlas, vae: AutoencoderKL, out: Path, plan: Plan, *, device: torch.device, compiled: bool = False
    ) -> None:
        self.plan, self.out, self.device = plan, out, device
        self.world = TrainingWorld(atlas, device)
        vocabulary_size = len(CaptionWriter(atlas.names[:1], device).vocabulary)
        built = build_components(vocabulary_size)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.preview_vae = copy.deepcopy(vae).to(device)
        self.vae = vae.to(device, dtype).requires_grad_(False)
        built.unet.to(dtype)
        self.components = Components(self.vae, built.unet, built.text_encoder, built.text_encoder_2)
        modules: dict[str, nn.Module] = {name: getattr(self.components, name).to(device) for name in TRAINED}
        if compiled:
            self.vae.encoder.compile()
            self.components.unet.compile()
        self.trainee = Trainee(modules, plan.peak_lr, device)
        self.stepper = Stepper(BaseLesson(self.components, self.world, self.trainee, plan).step, device)
        self.step = 0
        self.total_steps = plan.total_steps

    def resume(self, folder: Path) -> None:
        """Go on exactly where the state in `folder` was saved."""
        tensors, counters = load_pieces(folder)
        self.trainee.load_state(tensors)
        self.step = counters["step"]
        self.total_steps = self.plan.total_steps or counters["total_steps"] or None  # 0: it was not planned yet

    def start_from(self, base: Path) -> None:
        """Take the weights of a finished base; optimiser, average and schedule begin anew."""
        weights = {
            f"{module}.{name}": tensor
            for module in TRAINED
            for name, tensor in load_file(next((base / module).glob("*.safetensors")), str(self.device)).items()
        }
        self.trainee.load_weights(weights)

    def save_state(self) -> None:
        """Write what `resume` needs."""
        counters = {"step": self.step, "total_steps": self.total_steps or 0}
        save_pieces(self.trainee.state(), counters, self.out / "state")

    def export(self) -> None:
        """Write the averaged weights in float16 and a sheet of sampled pictures."""
        averaged = {
            f"{module}.{name}": tensor
            for module in TRAINED
            for name, tensor in self.trainee.averaged(module, torch.float16).items()
        }
        save_pieces(averaged, {"step": self.step}, self.out / "export")
        preview = build_components(self.components.text_encoder.config.vocab_size)
        for module in TRAINED:
            getattr(preview, module).load_state_dict(self.trainee.averaged(module))
            getattr(preview, module).to(self.device).eval()
        write_preview(
            Components(self.preview_vae, preview.unet, preview.text_encoder, preview.text_encoder_2),
            self.out / "preview.png",
        )

    def run(self) -> None:
        """Train this piece; plan the whole from the measured pace if no total of steps is known."""
        started = exported = time.monotonic()
        paced_from, measured_at = 0.0, self.step + 60
        while time.monotonic() - started < self.plan.seconds:
            if self.total_steps is not None and self.step >= self.total_steps:
                break
            self.trainee.set_progress(self.step, self.total_steps or 1_000_000)
            loss = self.stepper()
            self.step += 1
            if self.step == 20:
                float(loss)
                paced_from = time.monotonic()
            if self.total_steps is None and self.step == measured_at:
                float(loss)
                pace = (time.monotonic() - paced_from) / (self.step - 20)
                left = self.plan.total_seconds - (time.monotonic() - started)
                self.total_steps = self.step + int(left / pace)
                log.info("base: %.2f steps/s, %d planned", 1 / pace, self.total_steps)
            if self.step % 200 == 0:
                passed = time.monotonic() - started
                log.info("base: step %d loss %.5f at %.0f s", self.step, float(loss), passed)
            if time.monotonic() - exported > self.plan.export_seconds:
                self.save_state()
                self.export()
                exported = time.monotonic()
        self.save_state()
        self.export()


def main() -> None:
    """Pretrain from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--start", type=Path, help="folder of a finished base whose weights to begin with")
    parser.add_argument("--peak-lr", type=float, default=PEAK_LR)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--total-seconds", type=float, default=540.0)
    parser.add_argument("--total-steps", type=int)
    parser.add_argument("--export-seconds", type=float, default=240.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    plan = Plan(
        seconds=arguments.seconds,
        total_seconds=arguments.total_seconds,
        total_steps=arguments.total_steps,
        export_seconds=arguments.export_seconds,
        peak_lr=arguments.peak_lr,
    )
    atlas = read_sheet(arguments.sheet, training_names())
    vae = AutoencoderKL.from_pretrained(arguments.vae)
    pretraining = Pretraining(
        atlas, vae, arguments.out, plan, device=torch.device(arguments.device), compiled=arguments.compile
    )
    if arguments.resume is not None:
        pretraining.resume(arguments.resume)
    elif arguments.start is not None:
        pretraining.start_from(arguments.start)
    pretraining.run()


if __name__ == "__main__":
    main()
