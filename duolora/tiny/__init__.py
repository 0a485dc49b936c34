"""The embedded base: a small SDXL-format model of a procedural world of glyphs drawn in styles."""
