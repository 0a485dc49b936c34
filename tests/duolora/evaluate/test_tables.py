"""What stands in the tables of a run."""

from __future__ import annotations

from duolora.evaluate.metrics import Score
from duolora.evaluate.score_book import Entry
from duolora.evaluate.tables import complete_settings


def entry(pair: str, seed: int, knobs: str = "-") -> Entry:
    score = Score(content=0.5, style=0.5, hmean=0.5, truth_distance=0.1, ground=None)
    return Entry(
        method="weighted-sum",
        knobs=knobs,
        pair=pair,
        seed=seed,
        joint=score,
        recontext=score,
        trainable=0,
        seconds=0.0,
        sampling_seconds=0.0,
    )


def test_a_setting_that_lacks_a_pair_or_a_seed_is_left_out():
    entries = [entry("a", 0), entry("a", 1), entry("b", 0), entry("b", 1), entry("a", 0, "half"), entry("a", 1, "half")]
    assert [setting.knobs for setting in complete_settings(entries, ["a", "b"], [0, 1])] == ["-"]


def test_scores_of_a_wider_list_in_the_same_folder_do_not_enter():
    entries = [entry("a", 0), entry("b", 0), entry("a", 1)]
    (setting,) = complete_settings(entries, ["a"], [0])
    assert set(setting.cells) == {("a", 0)}
