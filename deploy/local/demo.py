"""`duolora demo`: one whole job on the shipped sample pictures, through the public HTTP API."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from api.client import Client, ClientError, Job, Wishes
from deploy.local.processes import LocalStackError
from deploy.local.stack import Stack
from duolora.config import Prompts
from duolora.tiny.base import base_path, samples_path

if TYPE_CHECKING:
    from collections.abc import Mapping

STAGE_NAMES: Mapping[str, str] = {
    "loras": "learning subject and style",
    "content_lora": "learning the subject",
    "style_lora": "learning the style",
    "merge": "merging",
    "package": "drawing the preview",
}
NAME_WIDTH = max(map(len, STAGE_NAMES.values()))


@dataclass(frozen=True)
class Samples:
    """The pictures that come with the tiny base, and what they show."""

    content: tuple[Path, ...]
    style: tuple[Path, ...]
    subject_class: str
    style_captions: tuple[str, ...]


def shipped_samples() -> Samples:
    """The sample pictures inside the package."""
    folder = samples_path()
    words = json.loads((folder / "samples.json").read_text())
    content, style = words["content"], words["style"]
    return Samples(
        content=tuple(folder / image["file"] for image in content["images"]),
        style=tuple(folder / image["file"] for image in style["images"]),
        subject_class=content["noun"],
        style_captions=tuple(image["caption"] for image in style["images"]),
    )


def run_demo(data: Path, out: Path, *, environment: Mapping[str, str], seed: int | None = None) -> None:
    """Start the stack, run one job, put its files into `out`, say what they are, stop.

    Raises:
        LocalStackError: the stack did not start or broke down, or the job did not succeed.
    """
    console = Console()
    began = time.monotonic()
    samples = shipped_samples()
    wishes: Wishes = {"style_captions": samples.style_captions}
    if seed is not None:
        wishes["seed"] = seed
    with console.status("starting Postgres, Valkey, the S3 store, the API, the dispatcher and a worker"):
        stack = Stack(data, environment=environment, durable=False)
        stack.start()
    try:
        console.print(
            f"stack up after {time.monotonic() - began:.1f} s; API at {stack.api_url}, logs in {_short(stack.logs)}",
            soft_wrap=True,
        )
        with Client(stack.api_url, stack.owner.api_key) as client:
            job = client.personalize(
                content=samples.content,
                style=samples.style,
                subject_class=samples.subject_class,
                **wishes,
            )
            console.print(
                f"job {job.id}: {len(samples.content)} pictures of the subject ({samples.subject_class}), "
                f"{len(samples.style)} of the style",
                soft_wrap=True,
            )
            job = _follow(client, job, stack, console)
            files = client.download(job, out)
    except (ClientError, httpx.HTTPError) as error:
        stack.check()  # a dead service explains it better
        raise LocalStackError(f"{error}\nThe logs are in {stack.logs}") from error
    finally:
        with console.status("stopping"):
            stack.stop()
    _report(console, job, files, subject_class=samples.subject_class, total_s=time.monotonic() - began)


def _follow(client: Client, job: Job, stack: Stack, console: Console) -> Job:
    """Wait for the job behind a progress bar. Where nobody watches, print a line for each new stage instead."""
    bar = Progress(
        TextColumn(f"{{task.description:<{NAME_WIDTH}}}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("waiting for the worker", total=1.0, detail="")
        seen: set[str] = set()

        def show(now: Job) -> None:
            stack.check()
            name = STAGE_NAMES.get(now.progress.stage or "", now.progress.stage or now.state)
            bar.update(task, completed=now.progress.fraction, description=name, detail=_detail(now))
            if not console.is_terminal and name not in seen:
                seen.add(name)
                console.print(f"  {name}")

        return client.wait(job.id, on_progress=show)


def _detail(job: Job) -> str:
    """Step, loss and time left, as far as they are known."""
    now = job.progress
    parts = []
    if now.step is not None and now.total:
        parts.append(f"step {now.step}/{now.total}")
    if now.loss is not None:
        parts.append(f"loss {now.loss:.3f}")
    if now.eta_seconds is not None:
        parts.append(f"{now.eta_seconds:.0f} s left")
    return ", ".join(parts)


def _report(console: Console, job: Job, files: Mapping[str, Path], *, subject_class: str, total_s: float) -> None:
    """Say where the files are and how to use them."""
    console.print(
        f"\n{_time_spent(job)}; the whole demo {total_s:.0f} s. Files, each checked by SHA-256:", soft_wrap=True
    )
    for path in files.values():
        console.print(f"  {_short(path)}  ({path.stat().st_size / 1024:.0f} KiB)", highlight=False)
    console.print(f"\nLook at {_short(files['preview'])}. The merged LoRA in stock diffusers:\n")
    load = f"pipe = StableDiffusionXLPipeline.from_pretrained({_short(base_path())!r}, torch_dtype=torch.float32)"
    prompt = Prompts(subject_class=subject_class).joint
    lines = [
        "import torch; from diffusers import StableDiffusionXLPipeline",
        load,
        f"pipe.load_lora_weights({_short(files['merged_diffusers'])!r})",
        f'pipe("{prompt}", height=64, width=64).images[0].save("picture.png")',
    ]
    console.print("\n".join(f"    {line}" for line in lines), highlight=False, soft_wrap=True)


def _time_spent(job: Job) -> str:
    """How long the job took from submission to result, and in which stages."""
    whole_s = (job.finished_at - job.created_at).total_seconds() if job.finished_at else float("nan")
    if job.timings is None:
        return f"job done in {whole_s:.0f} s"
    stages = [f"{STAGE_NAMES.get(name, name)} {part['seconds']:.0f}" for name, part in job.timings.stages.items()]
    return f"job done in {whole_s:.0f} s ({', '.join([f'waiting {job.timings.queued_seconds:.0f}', *stages])})"


def _short(path: Path) -> str:
    """The path as seen from the working folder, when it lies inside."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)
