"""Where the pictures of a slider stand between all content and all style. Without torch: a service tells of it too."""

from __future__ import annotations


def slider_strengths(positions: int) -> list[dict[str, float]]:
    """Return the strengths of both sides from all content to all style; in the middle both are whole, as merged.

    Towards an end the other side fades in even steps. One position is the middle.
    """
    shares = [place / (positions - 1) for place in range(positions)] if positions > 1 else [0.5] * positions
    return [{"content": min(1.0, 2 * (1 - share)), "style": min(1.0, 2 * share)} for share in shares]
