"""Names under which SDXL's base was first known; `duolora.models.base` has the class of all families."""

from __future__ import annotations

from duolora.models.base import DiffusionBase, LatentMoments, PromptEmbeddings

SdxlBase = DiffusionBase

__all__ = ["LatentMoments", "PromptEmbeddings", "SdxlBase"]
