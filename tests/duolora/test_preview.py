from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from duolora.preview import CELL_PX, GAP_PX, LABEL_PX, PAPER, PreviewRow, preview_grid


def noise(seed: int, size: int = CELL_PX) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3)).astype(np.uint8))


def row(title: str, pictures: list[Image.Image]) -> PreviewRow:
    return PreviewRow(title, f"note of {title}", pictures)


def cell(sheet: Image.Image, line: int, column: int) -> np.ndarray:
    left = GAP_PX + column * (CELL_PX + GAP_PX)
    top = GAP_PX + line * (LABEL_PX + CELL_PX + GAP_PX) + LABEL_PX
    return np.asarray(sheet.crop((left, top, left + CELL_PX, top + CELL_PX)))


def label(sheet: Image.Image, line: int) -> np.ndarray:
    top = GAP_PX + line * (LABEL_PX + CELL_PX + GAP_PX)
    return np.asarray(sheet.crop((0, top, sheet.width, top + LABEL_PX)))


def test_sheet_has_room_for_every_row_and_column() -> None:
    sheet = preview_grid([row("one", [noise(0)] * 3), row("two", [noise(1)])], columns=4)

    assert sheet.size == (GAP_PX + 3 * (CELL_PX + GAP_PX), GAP_PX + 2 * (LABEL_PX + CELL_PX + GAP_PX))


def test_no_row_is_wider_than_the_columns_asked_for() -> None:
    sheet = preview_grid([row("one", [noise(seed) for seed in range(7)])], columns=4)

    assert sheet.width == GAP_PX + 4 * (CELL_PX + GAP_PX)
    assert np.array_equal(cell(sheet, 0, 3), np.asarray(noise(3)))


def test_cells_show_the_very_pixels_of_their_pictures() -> None:
    rows = [row(str(line), [noise(10 * line + column) for column in range(2)]) for line in range(3)]

    sheet = preview_grid(rows)

    for line in range(3):
        for column in range(2):
            assert np.array_equal(cell(sheet, line, column), np.asarray(noise(10 * line + column)))


def test_small_pictures_are_enlarged_without_new_colours() -> None:
    small = noise(0, 8)

    shown = cell(preview_grid([row("one", [small])]), 0, 0)

    blocks = np.asarray(small).repeat(CELL_PX // 8, axis=0).repeat(CELL_PX // 8, axis=1)
    assert np.array_equal(shown, blocks)


def test_large_and_grey_pictures_fit_their_cells() -> None:
    sheet = preview_grid([row("one", [Image.new("L", (1000, 1000), 77)])])

    assert np.abs(cell(sheet, 0, 0).astype(int) - 77).max() <= 1


def test_each_row_has_its_own_label() -> None:
    sheet = preview_grid([row("Content images", [noise(0)]), row("Merged LoRA", [noise(0)])])

    inked = [(label(sheet, line) != np.array(PAPER)).any(axis=2).sum() for line in range(2)]
    assert min(inked) > 100
    assert not np.array_equal(label(sheet, 0), label(sheet, 1))


@pytest.mark.parametrize("pictures", [0, 1])
def test_empty_cells_stay_paper(pictures: int) -> None:
    sheet = preview_grid([row("full", [noise(0)] * 2), row("short", [noise(1)] * pictures)])

    assert (cell(sheet, 1, 1) == np.array(PAPER)).all()
