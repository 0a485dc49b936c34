from __future__ import annotations

import numpy as np
import pytest

from duolora.merge_plot import COLOURS, HALF_PX, HEAD_PX, MARGIN_PX, WIDTH_PX, merge_plot


def layer(content: float | None, style: float | None, **others: float) -> dict[str, object]:
    sides = {"content": content, "style": style, **others}
    return {"role": None} | {side: {"mean_mask": value} for side, value in sides.items() if value is not None}


def heights(layers: dict[str, dict[str, object]], role: str, index: int) -> int:
    """Pixels of a role's colour in the column of one bar."""
    pixels = np.asarray(merge_plot(layers))
    step = (WIDTH_PX - 2 * MARGIN_PX) / len(layers)
    column = pixels[HEAD_PX : HEAD_PX + 2 * HALF_PX + 1, round(MARGIN_PX + (index + 0.4) * step)]
    return int((column == COLOURS[role]).all(axis=-1).sum())


BLOCKS = ("up_blocks.0", "mid_block", "down_blocks.1")


@pytest.mark.parametrize("role", ["content", "style"])
def test_bars_are_as_tall_as_what_is_kept_and_stand_in_the_unets_order(role: str) -> None:
    strengths = dict(zip(BLOCKS, (1.0, 0.5, 0.25), strict=True))
    layers = {
        f"unet.{block}.attentions.0.to_q": layer(**{"content": 0.01, "style": 0.01, role: value})
        for block, value in strengths.items()
    }
    drawn = [heights(layers, role, index) for index in range(3)]
    assert drawn == pytest.approx([0.25 * HALF_PX, 0.5 * HALF_PX, HALF_PX], abs=2)


def test_a_side_that_a_layer_lacks_has_no_bar_and_sides_of_one_role_stand_on_each_other() -> None:
    layers = {
        "unet.down_blocks.0.attentions.0.to_q": layer(1.0, None),
        "unet.down_blocks.0.attentions.0.to_k": layer(None, 0.5, **{"style-2": 0.25}),
    }
    assert heights(layers, "style", 0) == heights(layers, "content", 1) == 0
    assert heights(layers, "style", 1) == pytest.approx(0.75 * HALF_PX, abs=2)


@pytest.mark.parametrize("layers", [{}, {"strange.name": layer(0.0, 0.0)}])
def test_a_merge_that_keeps_nothing_can_be_drawn(layers: dict[str, dict[str, object]]) -> None:
    assert merge_plot(layers).size[0] == WIDTH_PX
