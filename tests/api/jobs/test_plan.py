import pytest

from api.jobs.plan import plan, stage_weights
from duolora import recipes
from duolora.config import Prompts
from duolora.job_configs import GenerateJobConfig, MergeJobConfig, TrainJobConfig
from tests.support.company import alone, together

ONE_BY_ONE = {
    "content_lora": (),
    "style_lora": (),
    "merge": ("content_lora", "style_lora"),
    "package": ("merge",),
}
IN_ONE_PASS = {"loras": (), "merge": ("loras",), "package": ("merge",)}


def weigh(config):
    return stage_weights(config, names(config))


def names(config):
    return [stage.name for stage in plan(config)]


@pytest.mark.parametrize(("recipe", "graph"), [(alone, ONE_BY_ONE), (together, IN_ONE_PASS)])
def test_the_plan_of_a_personalize_job_follows_how_its_sides_are_trained(recipe, graph):
    stages = plan(recipe("tiny", Prompts()))
    assert {stage.name: stage.depends_on for stage in stages} == graph


def train(*sides, recipe=alone):
    return TrainJobConfig.of(recipe("tiny", Prompts()), sides)


def merge(**changes):
    return MergeJobConfig.of(alone("tiny", Prompts()).model_copy(update=changes))


def generate(prompts=("a dog",), **wishes):
    return GenerateJobConfig.of(alone("tiny", Prompts()), prompts=prompts, strengths=(1.0,), wishes=wishes)


ALL_KINDS = [
    alone("tiny", Prompts()),
    together("tiny", Prompts()),
    train("content"),
    train("style", recipe=together),
    train("content", "style"),
    train("content", "style", recipe=together),
    merge(),
    merge(slider=5),
    generate(),
]


@pytest.mark.parametrize(
    ("config", "graph"),
    [
        (train("content"), {"content_lora": (), "package": ("content_lora",)}),
        (train("style", recipe=together), {"style_lora": (), "package": ("style_lora",)}),
        (train("content", "style"), {"content_lora": (), "style_lora": (), "package": ("content_lora", "style_lora")}),
        (train("content", "style", recipe=together), {"loras": (), "package": ("loras",)}),
        (merge(), {"merge": (), "package": ("merge",)}),
        (generate(), {"generate": ()}),
    ],
)
def test_jobs_of_other_kinds_have_the_stages_that_they_need(config, graph):
    assert {stage.name: stage.depends_on for stage in plan(config)} == graph


@pytest.mark.parametrize("config", ALL_KINDS)
def test_the_weights_of_every_kind_add_up(config):
    weights = [stage.weight for stage in plan(config)]
    assert sum(weights) == pytest.approx(1)
    assert min(weights) > 0


def test_a_slider_and_more_sides_make_the_last_stage_weigh_more():
    def last(config):
        return plan(config)[-1].weight

    assert last(merge(slider=9)) > last(merge())
    assert last(train("content", "style")) < 2 * last(train("content"))


@pytest.mark.parametrize("config", ALL_KINDS)
def test_a_stage_depends_on_earlier_ones_only(config):
    seen = set()
    for stage in plan(config):
        assert set(stage.depends_on) <= seen
        assert stage.name not in seen
        seen.add(stage.name)


@pytest.mark.parametrize("recipe", [alone, together, *recipes.RECIPES.values()])
def test_weights_cover_the_plan_and_add_up(recipe):
    config = recipe("tiny", Prompts())
    weights = weigh(config)
    assert list(weights) == names(config)
    assert sum(weights.values()) == pytest.approx(1)
    assert min(weights.values()) > 0


def test_more_steps_weigh_more():
    config = alone("tiny", Prompts())
    longer = config.model_copy(update={"style": config.style.model_copy(update={"steps": 1000})})
    assert weigh(longer)["style_lora"] > weigh(config)["style_lora"]
    assert weigh(longer)["merge"] < weigh(config)["merge"]


def test_one_pass_weighs_as_much_as_the_two_stages_in_its_place():
    one, two = (weigh(recipe("tiny", Prompts())) for recipe in (together, alone))
    assert one["loras"] == pytest.approx(two["content_lora"] + two["style_lora"])


def test_a_job_is_weighed_by_the_stages_it_was_stored_with():
    weights = stage_weights(together("tiny", Prompts()), ONE_BY_ONE)
    assert list(weights) == list(ONE_BY_ONE)
    assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("recipe", [alone, together])
def test_a_plan_says_how_much_of_the_work_each_stage_is(recipe):
    config = recipe("tiny", Prompts())
    stages = plan(config)
    assert {stage.name: stage.weight for stage in stages} == weigh(config)
    assert sum(stage.weight for stage in stages) == pytest.approx(1)
