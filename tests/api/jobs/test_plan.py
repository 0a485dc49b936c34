import pytest

from api.jobs.plan import PLANS, JobKind, stage_weights
from duolora import recipes
from duolora.config import Prompts


def test_the_plan_of_a_personalize_job():
    graph = {stage.name: stage.depends_on for stage in PLANS[JobKind.PERSONALIZE]}
    assert graph == {
        "content_lora": (),
        "style_lora": (),
        "merge": ("content_lora", "style_lora"),
        "package": ("merge",),
    }


@pytest.mark.parametrize("kind", JobKind)
def test_a_stage_depends_on_earlier_ones_only(kind):
    seen = set()
    for stage in PLANS[kind]:
        assert set(stage.depends_on) <= seen
        assert stage.name not in seen
        seen.add(stage.name)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_weights_cover_the_plan_and_add_up(recipe):
    weights = stage_weights(recipes.resolve(recipe, "tiny", Prompts()))
    assert set(weights) == {stage.name for stage in PLANS[JobKind.PERSONALIZE]}
    assert sum(weights.values()) == pytest.approx(1)
    assert min(weights.values()) > 0


def test_more_steps_weigh_more():
    short, long = (stage_weights(recipes.resolve("tiny", "tiny", Prompts(), style_steps=steps)) for steps in (10, 1000))
    assert long["style_lora"] > short["style_lora"]
    assert long["merge"] < short["merge"]
