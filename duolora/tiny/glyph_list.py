"""Derives `glyphs.json` (which glyphs the world knows, their names and class nouns) from Unicode's emoji-test.txt.

Development only: `python -m duolora.tiny.glyph_list EMOJI_TEST_TXT` rewrites the committed list. Near-duplicate and
hard-to-name glyphs (skin tones, gendered variants, flags, clock faces, letters) are left out, so that every name can
be learned.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import unicodedata
from pathlib import Path

log = logging.getLogger(__name__)

MAX_NAME_WORDS = 3

CLASS_OF_SUBGROUPS: dict[str, str] = {
    "face": "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy face-unwell face-hat "
    "face-glasses face-concerned face-negative face-costume cat-face monkey-face",
    "hand": "hand-fingers-open hand-fingers-partial hand-single-finger hand-fingers-closed hands hand-prop",
    "person": "person person-gesture person-role person-fantasy person-activity person-sport person-resting",
    "animal": "animal-mammal animal-amphibian animal-reptile",
    "bird": "animal-bird",
    "fish": "animal-marine food-marine",
    "insect": "animal-bug",
    "plant": "plant-flower plant-other",
    "fruit": "food-fruit",
    "vegetable": "food-vegetable",
    "food": "food-prepared food-asian food-sweet",
    "drink": "drink",
    "building": "place-building place-religious",
    "place": "place-map place-geographic place-other",
    "vehicle": "transport-ground transport-water transport-air",
    "garment": "clothing",
    "instrument": "musical-instrument music",
    "tool": "tool science medical writing office",
    "symbol": "heart emotion warning religion other-symbol sky-weather body-parts",
    "object": "dishware hotel event other-object award-medal sound lock money phone computer time sport game "
    "arts-crafts book-paper mail household light-video",
}
RENAMED = {
    "red heart": "heart",
    "red apple": "apple",
    "green salad": "salad",
    "leafy green": "lettuce",
    "red paper lantern": "paper lantern",
    "red envelope": "paper envelope",
    "kiwi fruit": "kiwi",
    "ear of corn": "corn",
}
COLOUR_WORDS = {"red", "orange", "yellow", "lime", "green", "teal", "blue", "purple", "pink", "brown"} | {
    "black",
    "grey",
    "white",
    "gold",
}
GENDERED = {"man", "woman", "men", "women", "mrs", "mx", "boy", "girl"} | {"man's", "woman's", "men's", "women's"}
LEFT_OUT = re.compile(
    r"clock$|thirty$|moon face|quarter moon|gibbous|waxing|waning|new moon|oncoming|facing|^no |speaker|sign$|banknote"
    r"|mailbox|button|^check|index pointing|asterisk|pushing|leftwards|rightwards|symbol$|suit$|^person gesturing"
    r"|trade mark|copyright|^registered|^part alternation|departure|arrival|minibus|medal$|chart|folder$|pinching"
    r"|^high speed|tray$|curly|^cross mark"
)
KEPT = frozenset(
    {"alarm clock", "mantelpiece clock", "peace symbol", "recycling symbol", "atom symbol", "wheelchair symbol"}
)

_SUBGROUP = {subgroup: noun for noun, subgroups in CLASS_OF_SUBGROUPS.items() for subgroup in subgroups.split()}
_LINE = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.*)")


def normalise(name: str) -> str:
    """Return a CLDR short name as lower-case ASCII words, e.g. `piñata` -> `pinata`."""
    plain = unicodedata.normalize("NFKD", name.replace("\u2019", "'")).encode("ascii", "ignore").decode()
    words = " ".join(re.sub(r"[^a-z0-9']+", " ", plain.lower()).split())
    return RENAMED.get(words, words.replace("'", ""))


def is_learnable(name: str) -> bool:
    """Say whether a normalised name is short, ungendered, free of colour words and not one of many look-alikes."""
    words = name.split()
    if name in KEPT:
        return True
    if len(words) > MAX_NAME_WORDS or LEFT_OUT.search(name):
        return False
    return not (set(words) & COLOUR_WORDS or (len(words) > 1 and set(words) & GENDERED))


def derive(emoji_test: str) -> list[dict[str, str]]:
    """Return `{codepoints, name, noun}` records, in Unicode order, from the text of emoji-test.txt."""
    noun: str | None = None
    records: dict[str, dict[str, str]] = {}
    for line in emoji_test.splitlines():
        if line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip().replace(" & ", "-")
            noun = _SUBGROUP.get(subgroup)
        match = _LINE.match(line)
        if not match or noun is None or "skin tone" in match[2] or ":" in match[2]:
            continue
        name = normalise(match[2])
        if is_learnable(name):
            records.setdefault(name, {"codepoints": match[1], "name": name, "noun": noun})
    return list(records.values())


def main() -> None:
    """Rewrite the committed glyph list."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    records = derive(Path(sys.argv[1]).read_text(encoding="utf-8"))
    lines = ",\n".join(json.dumps(record) for record in records)
    Path(__file__).with_name("glyphs.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    log.info("%d glyphs", len(records))


if __name__ == "__main__":
    main()
