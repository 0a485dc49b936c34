"""What the compared methods are called with: recipes of our merge, and who looks at pictures."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from duolora.adapters import RankSpaceAdapter
from duolora.baselines import b_lora
from duolora.baselines.duolora_release import PRIOR_BLOCKS, SharedMasks
from duolora.config import LayerPrior, MaskStart, Prompts
from duolora.evaluate.calling import Caller
from duolora.evaluate.host_pool import HostPool
from duolora.evaluate.jobs import Job, bare_case, encoded_case, recipe_case
from duolora.evaluate.methods import METHODS, OURS, Kind, Method, module_rank_numbers
from duolora.lora.write import write_diffusers
from duolora.merge import merge_cases
from duolora.recipes import MERGE_RECIPES, resolve
from duolora.train import train_tenants
from tests.duolora.pico import random_lora

SIDES = ("content", "style")
LOOKING = {
    "zip-lora",
    "ssr-merge",
    "duolora-release",
    "ziprank",
    "ziprank+priors",
    "ziprank+priors+constyle",
    "instant",
}


def method(name: str) -> Method:
    return next(one for one in METHODS if one.name == name)


@pytest.fixture
def job(base, tmp_path, content_pictures, style_pictures) -> Job:
    loras = {side: tmp_path / f"{side}.safetensors" for side in SIDES}
    for seed, path in enumerate(loras.values()):
        write_diffusers(random_lora(base, seed=seed, scale=0.05), path)
    config = resolve("tiny", "pico", Prompts(subject_class="dog"), content_steps=2, style_steps=2, rank=2)
    return Job("pair", 0, config, dict(zip(SIDES, (content_pictures, style_pictures), strict=True)), loras)


def assert_equal(one, other) -> None:
    assert set(one.layers) == set(other.layers)
    for name, layer in one.layers.items():
        torch.testing.assert_close(layer.delta_OI(), other.layers[name].delta_OI(), atol=1e-6, rtol=1e-4)


def test_only_merges_that_look_at_pictures_cause_any_to_be_encoded(base, job, monkeypatch):
    monkeypatch.setattr(base, "encode_pictures", lambda *_: pytest.fail("a picture was encoded"))
    merges = [one for one in METHODS if one.kind is not Kind.RECIPE]
    looking = {one.name for one in merges if one.sees_pictures(job.config, {})}
    assert looking == LOOKING | {"duolora+constyle"}
    with HostPool(1) as pool:
        caller = Caller(base, pool)
        for one in merges:
            if one.name not in looking:
                called = caller.call(one, one.grid[0], [job])
                assert called.trainable == [0]


@pytest.mark.parametrize("configured", sorted(MERGE_RECIPES))
def test_ours_is_the_merge_that_ships_whatever_the_run_is_configured_with(base, job, configured):
    ours = method(OURS)
    case = bare_case(job)
    expected = merge_cases(base, [case], MERGE_RECIPES["duolora"], resolution_px=64)[0]
    config = job.config.model_copy(update={"merge": MERGE_RECIPES[configured]})
    assert_equal(ours.call(base, [case], config)[0], expected.weights)
    assert not ours.sees_pictures(config, {})
    assert ours.trained_numbers(case, config, {}) == 0
    masks = sum(layer.rank for lora in case.loras.values() for layer in lora.layers.values())
    assert ours.trained_numbers(case, config, {"steps": 1}) == masks


LEANING = ("np-lora", "ssr-merge", "peft-svd", "peft-ties-svd", "peft-dare-ties-svd", "peft-magnitude-prune-svd")


@pytest.mark.parametrize("name", LEANING)
def test_weights_of_the_sides_are_tried_with_every_other_setting(name):
    weights = {"content_weight", "style_weight"}
    tried: dict[tuple, set] = {}
    for knobs in method(name).grid:
        others = tuple(sorted((knob, value) for knob, value in knobs.items() if knob not in weights))
        tried.setdefault(others, set()).add((knobs["content_weight"], knobs["style_weight"]))
    assert all(pairs == {(1.0, 1.0), (0.7, 1.2), (0.85, 1.4)} for pairs in tried.values())


@pytest.mark.parametrize("name", ["np-lora", "ssr-merge", "peft-svd"])
def test_a_sides_weight_means_that_its_lora_is_given_scaled(base, job, name):
    """Ours and peft's alike; only where signs are elected do peft's own weights mean something else."""
    one, case = method(name), encoded_case(base, job)
    knobs = dict(next(knobs for knobs in one.grid if knobs["style_weight"] == 1.4))
    found = one.call(base, [case], **knobs)[0]
    scaled = replace(
        case, loras={"content": case.loras["content"].scaled(0.85), "style": case.loras["style"].scaled(1.4)}
    )
    plain = knobs | {"content_weight": 1.0, "style_weight": 1.0}
    assert_equal(found, one.call(base, [scaled], **plain)[0])
    even = one.call(base, [case], **plain)[0]
    assert any(not torch.allclose(layer.delta_OI(), even.layers[key].delta_OI()) for key, layer in found.layers.items())


@pytest.mark.parametrize("one", [one for one in METHODS if one.on_host], ids=lambda one: one.name)
def test_what_runs_on_other_processes_can_be_sent_there(one):
    assert pickle.loads(pickle.dumps(one.call)) == one.call  # noqa: S301 - our own bytes


def test_the_ablation_adds_one_part_of_the_paper_after_the_other(base, job):
    case = encoded_case(base, job)
    few = {"steps": 2, "bank_size": 2}
    paper = MERGE_RECIPES["paper"].model_copy(update=few)
    stages = {
        "ziprank": {"start": MaskStart.ONES, "prior": LayerPrior.NONE, "constyle_weight": 0.0},
        "ziprank+priors": {"constyle_weight": 0.0},
        "ziprank+priors+constyle": {},
    }
    for name, changes in stages.items():
        expected = merge_cases(base, [case], paper.model_copy(update=changes), resolution_px=64)[0]
        assert_equal(method(name).call(base, [case], job.config, **few)[0], expected.weights)


def test_company_trains_both_loras_together_and_merges_them_as_by_default(base, job):
    company = method("company")
    made = company.call(base, [recipe_case(job)], job.config)[0]
    assert max(layer.rank for layer in made.layers.values()) == 4
    again = company.call(base, [recipe_case(job)], job.config)[0]
    assert_equal(made, again)
    alone = company.call(base, [recipe_case(job)], job.config, company=0.0)[0]
    assert any(
        not torch.allclose(layer.delta_OI(), alone.layers[name].delta_OI(), atol=1e-7)
        for name, layer in made.layers.items()
    )


def test_the_releases_masks_are_counted_as_it_learns_them(base, job):
    paths = base.target_layers("transformer")
    assert any(".ff." in path for path in paths)
    loras = {side: random_lora(base, seed=seed, ranks=(2 + seed,), paths=paths) for seed, side in enumerate(SIDES)}
    case = replace(bare_case(job), loras=loras)
    with RankSpaceAdapter(loras).inject(base.unet) as adapter:
        learned = sum(mask_JR.numel() for mask_JR in SharedMasks.over(adapter, PRIOR_BLOCKS).leaves)
    assert module_rank_numbers(case) == learned


def test_b_lora_is_counted_with_the_blocks_it_trains_and_throws_away(base, job, monkeypatch):
    trained = []

    def watched(*arguments):
        trained.extend(train_tenants(*arguments))
        return trained

    monkeypatch.setattr(b_lora, "train_tenants", watched)
    with HostPool(1) as pool:
        called = Caller(base, pool).call(method("b-lora"), {}, [job])
    assert called.trainable == [sum(lora.trainable_numbers for lora in trained[0].values())]
