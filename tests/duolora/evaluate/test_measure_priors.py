"""Measuring layer priors: which pairs, what a point stands for, and a small search from pictures to the file."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duolora.adapters import RankSpaceLinear
from duolora.config import GenerateConfig, TargetLayers
from duolora.errors import InvalidConfig
from duolora.evaluate.evolution import Strategy
from duolora.evaluate.jobs import case_of_loras
from duolora.evaluate.measure_priors import ONES, Search, main, measure
from duolora.evaluate.metrics import look, references, score
from duolora.evaluate.network import Evaluator, shipped_evaluator
from duolora.evaluate.prior_bench import PriorBench
from duolora.evaluate.prior_pairs import Group, calibration_pairs, measured_pairs, require_foreign_to_suite
from duolora.evaluate.prior_space import PriorMasks, PriorSpace
from duolora.evaluate.truth_suite import Selection, judge_pictures, truth_pairs
from duolora.generate import sample_tenants
from duolora.lora.canonical import canonicalise
from duolora.merge import merge_cases, whole_model_roles
from duolora.method import measured_priors as shipped
from duolora.method.measured_priors import SidePrior, layer_group, measured_priors
from duolora.method.priors import Role
from duolora.recipes import MERGE_RECIPES
from duolora.tiny.captions import training_colours
from tests.duolora.pico import random_lora

CPU = torch.device("cpu")
SAMPLING = GenerateConfig(steps=2, guidance_scale=4.0, images=2, resolution_px=64)


@pytest.fixture
def tenants(base):
    paths = base.target_layers(TargetLayers.TRANSFORMER)
    return [
        {
            side: canonicalise(random_lora(base, seed=10 * tenant + index, scale=0.1, paths=paths))
            for index, side in enumerate(("content", "style"))
        }
        for tenant in range(2)
    ]


def test_no_pair_of_the_full_suite_is_measured_on():
    listed = measured_pairs(None, 72)
    counts = {group: sum(own is group for own, _ in listed) for group in Group}
    assert counts == {Group.DEVELOPMENT: 24, Group.CALIBRATION: 60, Group.HELD_BACK: 12}
    assert len({pair.name for _, pair in listed}) == 96
    full = truth_pairs(Selection.FULL)
    assert not {pair.subject for _, pair in listed} & {pair.subject for pair in full}
    for pair in full:
        with pytest.raises(InvalidConfig, match=pair.name):
            require_foreign_to_suite([pair])


def test_calibration_pairs_are_what_the_base_knows_and_there_are_no_more_than_the_world_has():
    for pair in calibration_pairs(90, seed=3):
        assert pair.colour in training_colours(pair.style)
        assert pair.subject not in pair.companions
        assert pair.ground != pair.colour
    assert calibration_pairs(5, seed=3) == calibration_pairs(90, seed=3)[:5]
    with pytest.raises(InvalidConfig, match="fewer"):
        calibration_pairs(100_000)


@given(
    st.lists(st.floats(0.2, 2.5), min_size=6, max_size=6),
    st.lists(st.floats(-0.4, 1.5), min_size=2, max_size=2),
)
def test_a_point_stands_for_its_priors(strengths, tails):
    names = [*(f"unet.up_blocks.0.attn1.to_{part}" for part in "qv"), "unet.mid_block.ff.net.2", "unet.mid_block.proj"]
    space = PriorSpace(dict.fromkeys(names, Role.CONTENT))
    assert space.groups == ["mid_block.rest", "up_blocks.0.self.qk", "up_blocks.0.self.vo"]
    given = {
        role: SidePrior(dict(zip(space.groups, strengths[3 * index :], strict=False)), tails[index])
        for index, role in enumerate(Role)
    }
    found = space.priors(space.point(given))
    for role, prior in given.items():
        assert found[role].tail == pytest.approx(prior.tail, abs=1e-5)
        for group in space.groups:
            assert found[role].strength(group) == pytest.approx(prior.strength(group), rel=1e-4)
    low_D, high_D = space.bounds
    assert ((space.ones() >= low_D) & (space.ones() <= high_D)).all()


def test_masks_are_those_of_the_priors_for_every_tenant_at_its_own_point(base, tenants):
    roles = whole_model_roles(base, tenants[0]["content"].layers, 64)
    space = PriorSpace(roles)
    points_JD = torch.stack([space.point(measured_priors()), space.ones() + 0.3])
    masks = PriorMasks(space, tenants, CPU).at(points_JD)
    for tenant, loras in enumerate(tenants):
        priors = space.priors(points_JD[tenant])
        for role in Role:
            for name, layer in loras[role.value].layers.items():
                expected_R = priors[role].mask(name, layer, roles[name])
                torch.testing.assert_close(masks[role.value][name][tenant], expected_R, atol=1e-5, rtol=1e-4)


def test_the_bench_scores_what_a_merge_with_the_same_priors_draws(base, tenants):
    evaluator, pairs = shipped_evaluator(CPU), calibration_pairs(2)
    to = [references(evaluator, judge_pictures(pair, 0, 1)) for pair in pairs]
    prompts = [pair.prompts.joint for pair in pairs]
    space = PriorSpace(whole_model_roles(base, tenants[0]["content"].layers, 64))
    bench = PriorBench(base, evaluator, space, loras=tenants, prompts=prompts, references=to, sampling=SAMPLING)
    point_D = space.point(measured_priors())
    with bench:
        other = bench.scores(space.ones()[None], [4, 5])
        found = bench.scores(point_D[None], [4, 5])
    assert not any(isinstance(module, RankSpaceLinear) for module in base.unet.modules())
    merged = merge_cases(base, [case_of_loras(of, 0) for of in tenants], MERGE_RECIPES["duolora"], resolution_px=64)
    rgb_Jn3HW = sample_tenants(base, [one.weights for one in merged], [[p] * 2 for p in prompts], SAMPLING, [4, 5])
    for tenant, rgb_n3HW in enumerate(rgb_Jn3HW):
        expected = score(look(evaluator, (rgb_n3HW / 2 + 0.5).clamp(0, 1)), to[tenant])
        assert found[tenant].content == pytest.approx(expected.content, abs=1e-3)
        assert found[tenant].style == pytest.approx(expected.style, abs=1e-3)
        assert found[tenant].truth_distance == pytest.approx(expected.truth_distance, abs=1e-3)
    assert max(abs(one.content - two.content) for one, two in zip(found, other, strict=True)) > 3e-3
    with pytest.raises(RuntimeError, match="enter"):
        bench.scores(point_D[None], [4, 5])


def test_a_search_writes_priors_that_merges_can_start_from(base, monkeypatch, tmp_path):
    search = Search(
        strategy=Strategy(steps=1, draws=1),
        development=1,
        calibration=1,
        lora_steps=1,
        sampling_steps=1,
        start=ONES,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        untrained = Evaluator().eval().requires_grad_(False)  # a trained one sees neither side in an untrained base
    document = measure(base, untrained, search)
    assert set(document["scores"]) == {"development", "calibration", "held back"}
    assert document["scores"]["held back"] is None
    assert document["scores"]["development"]["gain"]["standard_error"] is None
    assert document["provenance"]["pairs"]["development"] == [truth_pairs(Selection.DEVELOPMENT)[0].name]
    assert document["provenance"]["steps_taken"] == len(document["provenance"]["tried"]) == 1
    names = [f"unet.{path}" for path in base.target_layers(TargetLayers.TRANSFORMER)]
    groups = {layer_group(name, role) for name, role in whole_model_roles(base, names, 64).items()}
    for role in Role:
        strengths = document[role.value]["strengths"]
        assert set(strengths) == groups
        assert any(group.endswith(".rest") for group in groups)
        assert any(value != 1 for value in strengths.values())
    (tmp_path / "measured_priors.json").write_text(json.dumps(document))
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "measured_priors.py"))
    priors = measured_priors.__wrapped__()
    assert priors[Role.CONTENT].strengths == document["content"]["strengths"]


def test_the_command_ends_the_search_when_its_time_is_over(base_folder, tmp_path):
    out = tmp_path / "found.json"
    small = ["--pairs", "1", "--development", "1", "--lora-steps", "1", "--sampling-steps", "1", "--seconds", "0"]
    main(["--out", str(out), *small, "--targets", "attention", "--base", str(base_folder), "--device", "cpu"])
    document = json.loads(out.read_text())
    assert document["provenance"]["steps_taken"] == 0
    assert not any(group.endswith(".rest") for group in document["style"]["strengths"])
    for group, strength in document["style"]["strengths"].items():  # the shipped ones, where nothing was moved
        assert strength == pytest.approx(measured_priors()[Role.STYLE].strength(group), abs=1e-3)
