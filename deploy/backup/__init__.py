"""A whole installation in a folder, and back: rows of one instant, and every object that they name."""
