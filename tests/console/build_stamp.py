"""Tells whether the built console is that of its sources, without Node: `python -m tests.console.build_stamp` notes it.

The note, `dist/build.json`, holds a SHA-256 of the sources that were built, one of the snippets that they take in, and
one of the files that came out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import api.console

CONSOLE = Path(api.console.__file__).parent
NOTE = "build.json"
SNIPPETS = ("load_in_diffusers.py", "comfyui.json")
"""Files of `api/snippets` that the sources take in."""
NOT_SOURCES = {"node_modules", NOTE}


def digest(folder: Path) -> str:
    """Return the SHA-256 of all files of a folder, with their names; what `npm` installed there is left out."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not NOT_SOURCES.intersection(name.parts):
            whole.update(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def stamp(console: Path) -> dict[str, str]:
    """Return what the note should hold."""
    taken_in = b"".join((console.parent / "snippets" / name).read_bytes() for name in SNIPPETS)
    return {
        "sources": digest(console / "web"),
        "snippets": hashlib.sha256(taken_in).hexdigest(),
        "files": digest(console / "dist"),
    }


def is_up_to_date(console: Path) -> bool:
    """Whether the note is there and right."""
    note = console / "dist" / NOTE
    return note.exists() and json.loads(note.read_text()) == stamp(console)


if __name__ == "__main__":
    (CONSOLE / "dist" / NOTE).write_text(json.dumps(stamp(CONSOLE), indent=2) + "\n")
