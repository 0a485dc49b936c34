"""A small run of the truth suite from pictures to tables, on the pico base with an untrained evaluator."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from duolora.cli import main
from duolora.errors import InvalidConfig, TrainingDiverged
from duolora.evaluate.host_pool import HostPool
from duolora.evaluate.jobs import encoded_case, train_missing
from duolora.evaluate.methods import METHODS, OURS, TRUTH, Kind, Method, chosen_methods, sweep
from duolora.evaluate.network import Evaluator
from duolora.evaluate.report import COLUMNS, outcome, write_reports
from duolora.evaluate.run import Plan, run_truth_suite
from duolora.evaluate.score_book import Entry, ScoreBook, key_of, knobs_word
from duolora.evaluate.tables import OUR_RECIPE
from duolora.evaluate.truth_suite import Selection, truth_pairs

pytestmark = pytest.mark.xdist_group("truth suite")  # one process makes the run that most tests look at

FEW = (
    *(method for method in METHODS if method.kind is Kind.REFERENCE),
    replace(next(method for method in METHODS if method.name == "np-lora"), grid=sweep(mu=(0.1, 2.0))),
    replace(next(method for method in METHODS if method.name == "weighted-sum"), grid=({},)),
    replace(next(method for method in METHODS if method.name == "k-lora"), grid=({},)),
    replace(next(method for method in METHODS if method.name == OURS), grid=({"steps": 1, "bank_size": 1},)),
    replace(next(method for method in METHODS if method.name == "joint-training"), grid=({},)),
    next(method for method in METHODS if method.name == "company"),
)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Evaluator().eval().requires_grad_(False)


def plan_in(out, *, methods=FEW, tenants=2, pairs=2) -> Plan:
    return Plan(
        pairs=truth_pairs(Selection.QUICK)[:pairs],
        seeds=1,
        methods=methods,
        tenants=tenants,
        out=out,
        base_name="pico",
        recipe="tiny",
        lora_steps=2,
        workers=1,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared_base, evaluator) -> tuple[Plan, ScoreBook]:
    plan = plan_in(tmp_path_factory.mktemp("run"))
    book = ScoreBook(plan.out / "scores.jsonl", Entry.from_record)
    run_truth_suite(plan, shared_base, evaluator, book)
    return plan, book


def test_every_setting_is_scored_on_every_pair(finished):
    plan, book = finished
    settings = [(TRUTH, "-"), *((method.name, knobs_word(knobs)) for method in FEW for knobs in method.grid)]
    expected = {(name, knobs, pair.name, 0) for name, knobs in settings for pair in plan.pairs}
    assert {key_of(entry) for entry in book.entries()} == expected
    for entry in book.entries():
        assert 0 <= entry.joint.hmean <= 1
        assert entry.recontext.ground is not None


def test_a_finished_run_is_not_run_again(finished, shared_base, evaluator):
    plan, book = finished

    def refuse(*_arguments, **_knobs):
        raise AssertionError("called again")

    frozen = replace(plan, methods=tuple(replace(method, call=refuse) for method in plan.methods))
    run_truth_suite(frozen, shared_base, evaluator, ScoreBook(plan.out / "scores.jsonl", Entry.from_record))
    assert len(book.entries()) == 20


def test_only_what_is_missing_is_done(finished, tmp_path, shared_base, evaluator):
    plan, _ = finished
    book = ScoreBook(plan.out / "scores.jsonl", Entry.from_record)
    asked = []
    original = next(method for method in FEW if method.name == "np-lora")
    book.forget([original.name])

    def count(base, cases, **knobs):
        asked.append(len(cases))
        return original.call(base, cases, **knobs)

    methods = tuple(replace(method, call=count, on_host=False) if method is original else method for method in FEW)
    run_truth_suite(replace(plan, methods=methods), shared_base, evaluator, book)
    assert asked == [2, 2]


def test_the_table_has_the_promised_columns_and_rows(finished):
    plan, book = finished
    write_reports(plan, outcome(plan, book.entries()), book.entries(), {"seeds": [0]})
    with (plan.out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert COLUMNS[:9] == (
        "method", "content", "style", "hmean", "hmean_lo", "hmean_hi", "truth_distance", "trainable", "seconds",
    )  # fmt: skip
    assert [row["method"] for row in rows] == [
        "truth", "content alone", "style alone", "np-lora", "weighted-sum", "k-lora", "duolora"
    ]  # fmt: skip
    with (plan.out / "recipes.csv").open() as file:
        whole = {row["method"]: row for row in csv.DictReader(file)}
    assert list(whole)[3:] == ["joint-training", "company", "weighted-sum", OUR_RECIPE]
    assert int(whole["joint-training"]["trainable"]) > 0
    both = int(whole["weighted-sum"]["trainable"])  # the sum trains nothing beside the two LoRAs
    masks = int(next(row["trainable"] for row in rows if row["method"] == OURS))
    assert int(whole["company"]["trainable"]) == both
    assert int(whole[OUR_RECIPE]["trainable"]) == both + masks
    merge_seconds = float(next(row["seconds"] for row in rows if row["method"] == "weighted-sum"))
    assert float(whole["weighted-sum"]["seconds"]) > merge_seconds
    ours = next(row for row in rows if row["method"] == OURS)
    for column in ("content", "style", "hmean", "truth_distance", "recontext_hmean"):
        assert whole[OUR_RECIPE][column] == ours[column]
    for row in rows:
        assert float(row["hmean_lo"]) <= float(row["hmean"]) <= float(row["hmean_hi"])


def test_results_name_every_setting_and_score_and_the_grid_can_be_looked_at(finished):
    plan, book = finished
    write_reports(plan, outcome(plan, book.entries()), book.entries(), {"seeds": [0]})
    results = json.loads((plan.out / "results.json").read_text())
    assert len(results["scores"]) == len(book.entries())
    assert {setting["knobs"] for setting in results["settings"] if setting["method"] == "np-lora"} == {
        "mu=0.1",
        "mu=2.0",
    }
    assert results["provenance"] == {"seeds": [0]}
    with Image.open(plan.out / "grid.png") as grid:
        assert grid.height > 176 * 8


def test_differences_to_ours_are_paired(finished):
    plan, book = finished
    found = outcome(plan, book.entries())
    write_reports(plan, found, book.entries(), {})
    results = json.loads((plan.out / "results.json").read_text())
    assert {"joint-training", "company"} < set(results["duolora_minus_rival_recipes"])
    differences = results["duolora_minus_rival"]
    means = {setting.method: setting.hmean_PS.mean() for setting in found.merges}
    assert set(differences) == {*means} - {OURS}
    for rival, difference in differences.items():
        assert difference["mean"] == pytest.approx(means[OURS] - means[rival])
        assert difference["low"] <= difference["mean"] <= difference["high"]


def test_pairs_trained_together_get_what_they_get_alone(finished, tmp_path, shared_base):
    plan, _ = finished
    alone = replace(plan, out=tmp_path).job(plan.pairs[1], 0)
    assert train_missing(shared_base, [alone], tenants=1) == 2
    assert train_missing(shared_base, [alone], tenants=1) == 0
    together = encoded_case(shared_base, plan.job(plan.pairs[1], 0))
    for side, lora in encoded_case(shared_base, alone).loras.items():
        for name, layer in lora.layers.items():
            torch.testing.assert_close(
                layer.delta_OI(), together.loras[side].layers[name].delta_OI(), atol=2e-5, rtol=0.05
            )


def test_a_setting_that_diverges_is_left_out_of_the_table(finished, shared_base, evaluator):
    plan, _ = finished

    def diverge(_base, _cases, *, rate):
        raise TrainingDiverged("the loss is nan")

    broken = Method("broken", diverge, sweep(rate=(1,)))
    named = replace(plan, methods=(*FEW, broken))
    book = ScoreBook(plan.out / "scores.jsonl", Entry.from_record)
    run_truth_suite(named, shared_base, evaluator, book)
    assert "broken" not in {setting.method for setting in outcome(named, book.entries()).settings}


def test_methods_are_chosen_by_name():
    assert [method.name for method in chosen_methods("np-lora, k-lora") if method.kind is Kind.MERGE] == [
        "k-lora",
        "np-lora",
    ]
    assert chosen_methods("all") == METHODS
    with pytest.raises(InvalidConfig, match="known: all"):
        chosen_methods("nonesuch")


def test_a_line_cut_off_by_a_crash_is_dropped_and_a_damaged_one_is_not_passed_over(finished, tmp_path):
    plan, _ = finished
    text = (plan.out / "scores.jsonl").read_text()
    cut = tmp_path / "scores.jsonl"
    cut.write_text(text[:-40])
    assert (
        len(ScoreBook(cut, Entry.from_record).entries())
        == len(ScoreBook(plan.out / "scores.jsonl", Entry.from_record).entries()) - 1
    )
    assert len(ScoreBook(cut, Entry.from_record).entries()) == len(cut.read_text().splitlines())
    cut.write_text("{\n" + text)
    with pytest.raises(InvalidConfig, match="line 1"):
        ScoreBook(cut, Entry.from_record)


def test_merging_on_the_host_gives_what_merging_here_gives(finished, shared_base):
    plan, _ = finished
    method = next(method for method in FEW if method.name == "np-lora")
    job = plan.job(plan.pairs[0], 0)
    here = method.call(shared_base, [encoded_case(shared_base, job)], mu=0.5)[0]
    with HostPool(1) as pool:
        (there,), seconds = pool.merge(method.call, {"mu": 0.5}, [(job.loras, 0)])
    assert seconds > 0
    for name, layer in here.layers.items():
        torch.testing.assert_close(layer.delta_OI(), there.layers[name].delta_OI(), atol=1e-6, rtol=1e-4)


def test_the_command_prints_and_writes_the_table(base_folder, tmp_path, capsys):
    arguments = ["evaluate", "--quick", "--pairs", "2", "--methods", "peft-svd", "--seeds", "1", "--lora-steps", "1"]
    where = [
        "--base",
        str(base_folder),
        "--recipe",
        "tiny",
        "--device",
        "cpu",
        "--tenants",
        "8",
        "--out",
        str(tmp_path),
    ]
    assert main([*arguments, *where]) == 0
    assert "peft-svd" in capsys.readouterr().out
    with (tmp_path / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["truth", "content alone", "style alone", "peft-svd"]
    assert float(rows["truth"]["hmean"]) > 0.8
    assert float(rows["peft-svd"]["hmean"]) < 0.3  # an untrained base knows nothing
    provenance = json.loads((tmp_path / "results.json").read_text())["provenance"]
    assert provenance["selection"] == "quick"
    assert provenance["pairs"] == 2
    assert provenance["seeds"] == [0]
    assert len(provenance["base_sha256"]) == 64
