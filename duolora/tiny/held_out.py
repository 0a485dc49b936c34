"""What the base never saw: subjects and style x colour combinations that play the user's own images. Torch-free."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TypedDict


class _HeldOut(TypedDict):
    subjects: list[str]
    combinations: list[tuple[str, str]]
    companions: list[str]


@cache
def _load() -> _HeldOut:
    document = json.loads(Path(__file__).with_name("held_out.json").read_text(encoding="utf-8"))
    return _HeldOut(
        subjects=document["subjects"],
        combinations=[(style, colour) for style, colour in document["combinations"]],
        companions=document["companions"],
    )


def held_out_subjects() -> tuple[str, ...]:
    """Return the names of the glyphs that are in no pretraining picture and no pretraining caption."""
    return tuple(_load()["subjects"])


def held_out_combinations() -> frozenset[tuple[str, str]]:
    """Return the (style, colour) pairs that pretraining never drew, though it drew each style and each colour."""
    return frozenset(_load()["combinations"])


def companion_subjects() -> tuple[str, ...]:
    """Return the seen subjects whose glyphs are shipped beside the held-out ones, for style reference pictures."""
    return tuple(_load()["companions"])


def mentions_held_out(name: str) -> bool:
    """Say whether `name` contains the name of a held-out subject as whole words."""
    padded = f" {name} "
    return any(f" {subject} " in padded for subject in _load()["subjects"])
