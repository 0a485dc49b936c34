"""All families that a base may belong to."""

from __future__ import annotations

from duolora.families.sd15 import SD15
from duolora.families.sdxl import SDXL

FAMILIES = (SDXL, SD15)
