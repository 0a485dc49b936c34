"""LoRA as a value: layers of (down, up, alpha), its canonical form, and the file formats that carry it."""
