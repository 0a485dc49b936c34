r"""Trains the evaluator on freshly drawn pictures of the whole world, held-out subjects and combinations included.

    python -m duolora.evaluate.train_evaluator --sheet training.png --out DIR --seconds 150

Drawing, distortion and step are one CUDA graph. Each head is a cosine softmax: the content head names the glyph, the
style head names style x colour or "plain"; their classifiers are dropped from the result. Writes
DIR/evaluator.safetensors and DIR/report.json, whose figures come from the float16 file as it will be shipped.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from duolora.evaluate.distort import distort
from duolora.evaluate.evaluator_report import measure
from duolora.evaluate.network import EMBEDDING_WIDTH, Evaluator, load_evaluator, save_evaluator
from duolora.evaluate.whole_world import PLAIN, WholeWorld, whole_atlas
from duolora.tiny.atlas import Atlas, read_sheet, training_names
from duolora.tiny.captions import COLOURS, STYLES
from duolora.tiny.trainee import Stepper, Trainee
from duolora.tiny.world import Dice

log = logging.getLogger(__name__)

PEAK_LR = 2e-3
COSINE_SCALE = 20.0
"""One over the temperature of both softmaxes."""
SMOOTHING = 0.05


class Classifier(nn.Module):
    """Unit directions of classes; scores are scaled cosines."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.direction_KE = nn.Parameter(torch.randn(classes, EMBEDDING_WIDTH))

    def forward(self, embedding_BE: Tensor) -> Tensor:
        """Return the score of every class (B,K) for unit embeddings."""
        return COSINE_SCALE * embedding_BE @ functional.normalize(self.direction_KE, dim=1).T


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and how many pictures a step draws: `plain + 14 * per_style`."""

    plain: int = 106
    per_style: int = 63
    seconds: float = 150.0
    total_steps: int | None = None
    measured_batches: int = 40
    measured_batch_size: int = 256


class EvaluatorLesson:
    """One training step on freshly drawn, distorted pictures."""

    def __init__(self, evaluator: Evaluator, world: WholeWorld, device: torch.device, plan: Plan) -> None:
        self.evaluator, self.world, self.plan = evaluator, world, plan
        self.dice = Dice(device)
        self.subjects = Classifier(len(world.names)).to(device)
        self.looks = Classifier(PLAIN + 1).to(device)
        modules = {"evaluator": evaluator, "subjects": self.subjects, "looks": self.looks}
        self.trainee = Trainee(modules, PEAK_LR, device)

    def step(self) -> Tensor:
        """Draw, distort, tell apart, learn; return the loss."""
        with torch.no_grad():
            rgb_B3HW, seen = self.world.sample(self.dice, self.plan.plain, self.plan.per_style)
            rgb_B3HW = distort(rgb_B3HW, self.dice)
        device_type = self.dice.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
            content_BE, style_BE = self.evaluator(rgb_B3HW)
        subject_loss = functional.cross_entropy(self.subjects(content_BE), seen.glyph_B, label_smoothing=SMOOTHING)
        look_loss = functional.cross_entropy(self.looks(style_BE), seen.look_B, label_smoothing=SMOOTHING)
        loss = subject_loss + look_loss
        self.trainee.learn(loss)
        return loss.detach()


def train(atlas: Atlas, out: Path, plan: Plan, device: torch.device) -> dict[str, float]:
    """Train for `plan.seconds` or `plan.total_steps`, write the file and the report; return the report's figures."""
    evaluator = Evaluator().to(device)
    world = WholeWorld(atlas, device)
    lesson = EvaluatorLesson(evaluator, world, device, plan)
    steps = _run(lesson, Stepper(lesson.step, device), plan)
    out.mkdir(parents=True, exist_ok=True)
    trainee = lesson.trainee
    save_evaluator(trainee.averaged("evaluator"), out / "evaluator.safetensors")
    shipped = load_evaluator(device, out / "evaluator.safetensors")
    lesson.subjects.load_state_dict(trainee.averaged("subjects"))
    lesson.looks.load_state_dict(trainee.averaged("looks"))
    figures = measure(
        shipped,
        lesson.subjects,
        lesson.looks,
        world,
        batches=plan.measured_batches,
        batch_size=plan.measured_batch_size,
    )
    document = {
        "steps": steps,
        "pictures": steps * (plan.plain + plan.per_style * len(STYLES)),
        "parameters": sum(parameter.numel() for parameter in evaluator.parameters()),
        "subjects": len(world.names),
        "looks": f"{len(STYLES)} styles x {len(COLOURS)} colours, and plain",
        **{name: round(value, 4) for name, value in figures.items()},
    }
    (out / "report.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return figures


def _run(lesson: EvaluatorLesson, stepper: Stepper, plan: Plan) -> int:
    """Take the steps of a plan, planning their number from the measured pace; return how many were taken."""
    started, paced_from, step = time.monotonic(), 0.0, 0
    planned = plan.total_steps
    while time.monotonic() - started < plan.seconds and (planned is None or step < planned):
        lesson.trainee.set_progress(step, planned or 1_000_000)
        loss = stepper()
        step += 1
        if planned is None and step == 20:
            float(loss)
            paced_from = time.monotonic()
        if planned is None and step == 60:
            float(loss)
            pace = (time.monotonic() - paced_from) / 40
            planned = step + int((plan.seconds - (time.monotonic() - started)) / pace)
            log.info("evaluator: %.1f steps/s, %d planned", 1 / pace, planned)
        if step % 200 == 0:
            log.info("evaluator: step %d loss %.4f at %.0f s", step, float(loss), time.monotonic() - started)
    return step


def main() -> None:
    """Train the evaluator from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=Plan().seconds)
    parser.add_argument("--total-steps", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.manual_seed(2)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    plan = Plan(seconds=arguments.seconds, total_steps=arguments.total_steps)
    atlas = whole_atlas(read_sheet(arguments.sheet, training_names()))
    figures = train(atlas, arguments.out, plan, torch.device(arguments.device))
    log.info("%s", json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
