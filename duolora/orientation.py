"""Turning a picture upright by its EXIF orientation, for the API and the engine alike. Needs Pillow only."""

from __future__ import annotations

from PIL import Image

ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.32 orientation -> what turns the picture upright; 1 is upright."""


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says. Only the orientation is read; whatever is odd about it, the picture stays.

    Pillow's own exif_transpose writes all tags anew and fails on odd ones.
    """
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - a stranger's metadata: nothing it does to its parser makes the pixels worse
        turn = None
    return image if turn is None else image.transpose(turn)
