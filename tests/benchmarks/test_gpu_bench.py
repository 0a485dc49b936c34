"""The GPU benchmark in tiny sizes on the CPU: that its sections run, restore what they borrow, and can fail."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from duolora.config import TargetLayers
from duolora.errors import OutOfMemory
from duolora.events import Progress
from duolora.models.base import TARGET_PATTERNS
from duolora.models.lean import PlainAttention
from duolora.runtime import choose_runtime
from tests.benchmarks.gpu import base_check, cards, correctness, loss_curves, merge_rivals, profiles, random_sdxl
from tests.benchmarks.gpu.__main__ import main
from tests.benchmarks.gpu.diffusers_loop import DreamBoothLoop
from tests.benchmarks.gpu.own_process import rows_of
from tests.benchmarks.gpu.report import GOALS, Report
from tests.benchmarks.gpu.sections import SECTIONS, run_sections
from tests.benchmarks.gpu.stock import stock_unet
from tests.benchmarks.gpu.timing import Stamps
from tests.benchmarks.gpu.workbench import TINY, Findings, Workbench, attempted

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

TIMINGS = ("base", "matmul", "diffusers_loop", "lora_step", "merge_rivals", "merges", "previews", "job", "many_jobs")
HERE = {"device": "a CPU"}


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(TINY, choose_runtime("cpu"), tmp_path / "pictures")


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def test_the_full_sizes_are_those_of_sdxl() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**random_sdxl.unet_config(random_sdxl.PUBLISHED))
        vae = AutoencoderKL(**random_sdxl.vae_config(random_sdxl.PUBLISHED))
        first = random_sdxl.CLIPTextModel(random_sdxl.text_config(random_sdxl.PUBLISHED.first_text))
        second = random_sdxl.CLIPTextModelWithProjection(random_sdxl.text_config(random_sdxl.PUBLISHED.second_text))
    pattern = TARGET_PATTERNS[TargetLayers.ATTENTION]
    adapted = [path for path, each in unet.named_modules() if isinstance(each, nn.Linear) and pattern.search(path)]
    assert parameters(unet) == random_sdxl.UNET_PARAMETERS == 2_567_463_684
    assert len(adapted) == random_sdxl.ATTENTION_LINEARS == 560
    assert [parameters(each) for each in (vae, first, second)] == [83_653_863, 123_060_480, 694_659_840]


def test_every_timing_runs_and_the_report_has_every_figure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["--small", "--out", str(out), "--only", ",".join(TIMINGS)]) == 0
    report = json.loads((out / "gpu.json").read_text())
    assert [name for name in GOALS if report[name] is None] == ["peak_gib_by_profile"]  # of a section left out here
    assert report["lora_step_ratio"] == report["diffusers_step_s_per_image"] / report["lora_step_s_per_image"]
    assert report["merge_ratio"] == report["release_merge_100_s"] / report["merge_100_s"]
    assert report["job_with_paper_merge_s"] == pytest.approx(
        report["job_s"] + report["merge_100_s"] - report["sections"]["job"]["rows"][1]["seconds"]
    )
    assert [row["unet_passes_a_step"] for row in report["sections"]["merge_rivals"]["rows"]] == [8, 4]
    text = (out / "gpu.md").read_text()
    assert all(f"## {name}\n" in text for name in TIMINGS)
    assert "| 1 | yes |" in text  # diffusers' loop with checkpointing


def test_fast_paths_are_correct_and_the_rivals_losses_are_ours(bench: Workbench) -> None:
    checks = [*correctness.measure(bench).rows, *loss_curves.measure(bench).rows]
    assert [row for row in checks if not row["passed"]] == []
    # In float32 nothing but the order of sums may differ: the rival saw the very samples that ours drew.
    assert all(row["error"] < 1e-3 for row in checks if "diffusers' loop and ours, float32" in row["check"])


def test_a_wrong_gradient_and_another_curve_do_not_pass() -> None:
    right = correctness.Step({"content": 1.0}, {"content": torch.ones(4, dtype=torch.float64)})
    wrong = replace(right, gradients={"content": torch.tensor([1.0, 1.0, 1.0, 1.1], dtype=torch.float64)})
    broken = replace(right, losses={"content": float("nan")})
    assert [row["passed"] for row in correctness._compare("", wrong, right, 1e-2)] == [True, False]
    assert [row["passed"] for row in correctness._compare("", broken, right, 1e-2)] == [False, True]
    curves = [({step: factor / step for step in range(1, 9)}, {}) for factor in (1.1, 1.0)]
    with pytest.raises(ValueError, match="empty"):
        loss_curves._rows("", 4, *curves)  # no LoRA to compare
    assert loss_curves.smoothed(curves[1][0], 4) == pytest.approx({0: 25 / 48, 1: 533 / 3360})


def test_a_profile_runs_the_short_job_in_a_process_of_its_own(bench: Workbench) -> None:
    findings = profiles.measure(bench)
    assert [row["result"] for row in findings.rows] == ["ok"]
    assert findings.rows[0]["memory"] == "8gb"
    assert findings.rows[0]["merge_s_per_step"] > 0
    assert findings.figures == {"peak_gib_by_profile": {8: 0.0}}


def test_a_profile_that_is_too_small_says_where(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(_bench: Workbench) -> dict[str, float]:
        raise OutOfMemory("the GPU ran out of memory")

    monkeypatch.setattr(profiles, "STAGES", {"base": lambda *_: {}, "train": too_much, "merge": lambda *_: {}})
    row = profiles.short_job(bench)
    assert (row["result"], row["out_of_memory_in"]) == ("out of memory", "train")
    assert "merge_peak_gib" not in row


def test_every_card_runs_a_job_and_two_share_one(bench: Workbench) -> None:
    findings = cards.measure(bench)
    assert [(row["cards"], row["what"], row["result"]) for row in findings.rows] == [
        (1, "a job on each", "ok"),
        (2, "a job on each", "ok"),
        (2, "one job, parted", "ok"),
    ]
    two = findings.rows[1]
    assert 3600 / two["job_s"] < two["jobs_per_hour"] == findings.figures["jobs_per_hour_by_cards"][2]


def test_a_process_that_fails_is_a_row_that_says_why(tmp_path: Path) -> None:
    refused, fails = rows_of(cards.MODULE, [["--sides", "content"], ["--sides", "", "--small", f"--folder={tmp_path}"]])
    assert refused["result"].startswith("failed: exit 2: ")
    assert "--folder" in refused["result"]
    assert fails["result"].startswith("failed: exit 1: ")


def test_a_base_that_is_not_finite_is_refused(bench: Workbench) -> None:
    base_check.measure(bench)
    with torch.no_grad():
        next(bench.base().unet.parameters()).fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite: prediction"):
        base_check.measure(bench)


def test_a_failing_section_is_recorded_and_the_rest_goes_on(bench: Workbench, tmp_path: Path) -> None:
    def fails(_bench: Workbench) -> Findings:
        raise RuntimeError("no such kernel")

    def inverse(size: int) -> dict[str, float]:
        return {"s": 1 / size}

    sections = {
        "fails": fails,
        "half": lambda _bench: Findings({}, [attempted({"size": size}, partial(inverse, size)) for size in (0, 2)]),
        "works": lambda bench: Findings({"matmul_tflops": 2.0 * len(bench.figures)}, [{"tflops": 2.0}]),
    }
    earlier = Report(tmp_path, HERE, {"previews_s": 3.0})
    earlier.add("earlier", Findings({"job_s": 50.0}, [{"stage": "whole"}]), 1.0)
    report = Report.in_folder(tmp_path, HERE)
    assert run_sections(bench, report, ["fails", "half", "works"], sections) == ["fails", "half"]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "no such kernel" in found["sections"]["fails"]["error"]
    assert "ZeroDivisionError" in found["sections"]["half"]["rows"][0]["result"]
    assert found["sections"]["half"]["rows"][1] == {"size": 2, "s": 0.5, "result": "ok"}
    assert (found["job_s"], found["matmul_tflops"], found["merge_ratio"]) == (50.0, 4.0, None)
    assert list(found["sections"]) == ["earlier", "fails", "half", "works"]
    assert "no such kernel" in (tmp_path / "gpu.md").read_text()


def test_a_report_of_another_machine_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path, {"device": "NVIDIA H100"})
    report.add("matmul", Findings({"matmul_tflops": 741.0}), 1.0)
    with pytest.raises(SystemExit):
        main(["--small", "--out", str(tmp_path), "--only", "matmul"])
    assert "NVIDIA H100" in capsys.readouterr().err
    assert json.loads((tmp_path / "gpu.json").read_text())["matmul_tflops"] == 741.0


def test_too_little_memory_is_a_result_also_where_a_recording_fails_by_another_word() -> None:
    def takes_too_much() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def recorded() -> dict[str, float]:
        try:
            takes_too_much()
        finally:
            torch.tensor(0.0).view(2)  # as a graph's own exit raises while it is left by the error
        return {}

    assert attempted({"images": 16}, recorded) == {"images": 16, "result": "out of memory"}


def test_rivals_run_on_a_stock_unet_and_leave_the_base_as_it_is(bench: Workbench) -> None:
    unet = bench.base().pipeline.unet
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    loop = DreamBoothLoop(bench.base(), rank=2, checkpointing=True)
    assert len(loop.unet.state_dict()) > len(weights)
    merge = merge_rivals.rival_merge(bench, over_ranks=True)
    assert any(isinstance(each, merge_rivals.DenseMergedLinear) for each in merge.unet.modules())
    for rival in (loop.unet, merge.unet):
        assert rival.training
        assert rival.is_gradient_checkpointing
        assert not any(isinstance(each, PlainAttention) for each in rival.attn_processors.values())
    assert unet.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.state_dict().items())
    assert not unet.training
    assert not any(each.requires_grad for each in unet.parameters())


def test_a_stock_unet_has_the_bases_weights_in_the_bases_memory(bench: Workbench) -> None:
    base, stock = bench.base(), stock_unet(bench.base())
    ours = dict(base.pipeline.unet.named_parameters())
    theirs = dict(stock.named_parameters())
    shared = {name for name, each in theirs.items() if each.data_ptr() == ours[name].data_ptr()}
    assert {name for name, each in theirs.items() if each.ndim != 4} <= shared
    assert all(torch.equal(each, ours[name]) for name, each in theirs.items())


@pytest.mark.parametrize("over_ranks", [True, False])
def test_a_dense_merge_adds_the_masked_products(*, over_ranks: bool) -> None:
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    linear, x_BTI = nn.Linear(5, 7), random(2, 3, 5)
    factors = {side: (random(4, 5), random(7, 4)) for side in ("content", "style")}
    masks = {side: nn.Parameter(random(4 if over_ranks else 7)) for side in factors}
    attached = merge_rivals.Attached()
    layer = merge_rivals.DenseMergedLinear(linear, factors, masks, attached, over_ranks=over_ranks)
    plain = linear(x_BTI) + sum(x_BTI @ down_RI.T @ up_OR.T for down_RI, up_OR in factors.values())
    torch.testing.assert_close(layer(x_BTI), plain)
    attached.sides, attached.masked = ("style",), True
    down_RI, up_OR = factors["style"]
    hidden = x_BTI @ down_RI.T
    masked = (hidden * masks["style"]) @ up_OR.T if over_ranks else (hidden @ up_OR.T) * masks["style"]
    torch.testing.assert_close(layer(x_BTI), linear(x_BTI) + masked)


def test_stamps_time_a_step_by_its_note(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 15.0])
    monkeypatch.setattr("tests.benchmarks.gpu.timing.time.perf_counter", lambda: next(clock))
    stamps = Stamps(torch.device("cpu"), "training", every=2, skip=3)
    stamps.on_progress(Progress(step=0, total=8, note="encoding pictures"))
    for step in range(1, 9):
        stamps.on_progress(Progress(step=step, total=8, loss=1 / step, note="training"))
    assert stamps.times == [(3, 10.0), (5, 12.0), (7, 15.0)]
    assert stamps.step_s() == 1.25
    assert list(stamps.losses) == list(range(1, 9))
    with pytest.raises(ValueError, match="too few"):
        Stamps(torch.device("cpu"), "merging").step_s()


def test_no_section_is_without_a_test() -> None:
    assert {*TIMINGS, "correctness", "loss_curves", "profiles", "cards"} == set(SECTIONS)
