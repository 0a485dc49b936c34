"""The paper's protocol on folders that a user brings: every subject in every style, no truth known.

    PATH/subjects/<name>/*.png|jpg|webp     PATH/subjects/classes.txt   optional, lines "name,class"
    PATH/styles/<name>/*.png|jpg|webp       PATH/styles/<name>/captions.txt   optional, a line for each picture, by name
    PATH/prompts.txt                        optional, a prompt a line; {class} stands for the subject's class

Without classes.txt a folder's name is the class, trailing digits left out and `_` read as a space: `dog2` is a dog.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duolora.config import Prompts
from duolora.errors import InvalidConfig
from duolora.images import list_pictures

if TYPE_CHECKING:
    from pathlib import Path

WORDS = Prompts()
PAPER_PROMPTS = (f"a {WORDS.content_trigger} {{class}} in {WORDS.style_trigger} style",)
"""The paper's merged prompt, section 5."""


@dataclass(frozen=True, slots=True)
class FolderSubject:
    """A subject: its folder's name, its class noun, its pictures."""

    name: str
    noun: str
    pictures: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class FolderStyle:
    """A style: its folder's name, its pictures, what each shows."""

    name: str
    pictures: tuple[Path, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FolderPair:
    """A subject to be drawn in a style."""

    subject: FolderSubject
    style: FolderStyle

    @property
    def name(self) -> str:
        """Name of the pair."""
        return f"{self.subject.name} in {self.style.name}"

    @property
    def prompts(self) -> Prompts:
        """Captions of both sides."""
        return Prompts(subject_class=self.subject.noun, style_captions=self.style.captions)

    def prompt(self, template: str) -> str:
        """Return a prompt to draw with."""
        return template.replace("{class}", self.subject.noun)

    def plain_text(self, template: str) -> str:
        """Return a prompt as CLIP can know it: no subject trigger, and the style's own name for the style trigger."""
        words = [
            {WORDS.style_trigger: self.style.name.replace("_", " ")}.get(word, word)
            for word in self.prompt(template).split()
            if word != WORDS.content_trigger
        ]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class FolderSuite:
    """Every subject in every style, and the prompts each pair is drawn with."""

    pairs: tuple[FolderPair, ...]
    templates: tuple[str, ...]


def read_suite(path: Path) -> FolderSuite:
    """Read a suite from its folder.

    Raises:
        InvalidConfig: subjects or styles are missing, or a text file does not fit the pictures.
        InvalidImage: a subject or a style has no pictures.
    """
    classes = _classes(path / "subjects" / "classes.txt")
    subjects = [
        FolderSubject(folder.name, classes.get(folder.name, _class_of(folder.name)), tuple(list_pictures(folder)))
        for folder in _folders(path / "subjects")
    ]
    styles = [_style(folder) for folder in _folders(path / "styles")]
    pairs = tuple(FolderPair(subject, style) for subject in subjects for style in styles)
    return FolderSuite(pairs, _templates(path / "prompts.txt"))


def _folders(path: Path) -> list[Path]:
    """Return the folders inside one, by name."""
    found = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
    if not found:
        raise InvalidConfig(f"{path} holds no folders; --suite folders wants PATH/subjects/NAME and PATH/styles/NAME")
    return found


def _style(folder: Path) -> FolderStyle:
    """Read a style and its captions."""
    pictures = tuple(list_pictures(folder))
    listed = folder / "captions.txt"
    captions = tuple(_lines(listed)) if listed.is_file() else ()
    if captions and len(captions) != len(pictures):
        raise InvalidConfig(f"{listed} has {len(captions)} lines for {len(pictures)} pictures")
    return FolderStyle(folder.name, pictures, captions)


def _templates(path: Path) -> tuple[str, ...]:
    """Read the prompts, or return the paper's."""
    if not path.is_file():
        return PAPER_PROMPTS
    templates = tuple(_lines(path))
    triggers = {WORDS.content_trigger, WORDS.style_trigger}
    for template in templates:
        if not triggers <= set(template.split()):
            raise InvalidConfig(f"{path}: {template!r} must name both triggers, {' and '.join(sorted(triggers))}")
    if not templates:
        raise InvalidConfig(f"{path} holds no prompts")
    return templates


def _classes(path: Path) -> dict[str, str]:
    """Read "name,class" lines."""
    lines = _lines(path) if path.is_file() else []
    if any(line.count(",") != 1 for line in lines):
        raise InvalidConfig(f"every line of {path} must read name,class")
    return dict((part.strip() for part in line.split(",")) for line in lines)  # type: ignore[misc]


def _class_of(name: str) -> str:
    """Guess a class from a folder's name."""
    return name.rstrip("0123456789").replace("_", " ").strip() or "subject"


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
