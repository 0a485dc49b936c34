"""A CLIP-format byte-pair tokenizer: every caption word is one token, any other text is spelt in bytes."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from duolora.tiny.captions import vocabulary_words

if TYPE_CHECKING:
    from pathlib import Path

START_TOKEN = "<|startoftext|>"  # noqa: S105 - a token of text, not a secret
END_TOKEN = "<|endoftext|>"  # noqa: S105 - likewise
WORD_END = "</w>"
MAX_TOKENS = 32


def byte_symbols() -> list[str]:
    """Return GPT-2's 256 printable stand-ins for the bytes, in CLIP's vocabulary order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(unprintable))]


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    index = 0
    while index < len(word):
        if word[index : index + 2] == pair:
            merged.append(pair[0] + pair[1])
            index += 2
        else:
            merged.append(word[index])
            index += 1
    return tuple(merged)


@cache
def learn_merges(words: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return byte-pair merges, most frequent first, until every one of `words` is a single token."""
    pieces = {(*word[:-1], word[-1] + WORD_END) for word in words}
    pairs = Counter(pair for word in pieces for pair in pairwise(word))
    merges: list[tuple[str, str]] = []
    while pairs:
        most = max(pairs.values())
        best = min(pair for pair, count in pairs.items() if count == most)
        merges.append(best)
        for word in [word for word in pieces if best[0] in word and best in pairwise(word)]:
            merged = _merge(word, best)
            pieces.remove(word)
            pieces.add(merged)
            pairs.update(pairwise(merged))
            for pair in pairwise(word):
                pairs[pair] -= 1
                if not pairs[pair]:
                    del pairs[pair]
    return tuple(merges)


def build_vocabulary(merges: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Return token -> id: bytes, bytes that end a word, merges, then start and end (which has the highest id)."""
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *dict.fromkeys(a + b for a, b in merges)]
    return {token: index for index, token in enumerate([*tokens, START_TOKEN, END_TOKEN])}


def write_tokenizer(folder: Path) -> int:
    """Write a folder that `CLIPTokenizer.from_pretrained` loads; return the vocabulary size."""
    merges = learn_merges(vocabulary_words())
    vocabulary = build_vocabulary(merges)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": START_TOKEN,
        "eos_token": END_TOKEN,
        "unk_token": END_TOKEN,
        "pad_token": END_TOKEN,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return len(vocabulary)


class WordEncoder:
    """Turns caption words into token ids without transformers, by the same merges."""

    def __init__(self) -> None:
        merges = learn_merges(vocabulary_words())
        self.vocabulary = build_vocabulary(merges)
        self._rank = {pair: rank for rank, pair in enumerate(merges)}

    def encode(self, phrase: str) -> list[int]:
        """Return the ids of lower-case ASCII words parted by spaces, with neither start nor end token."""
        return [token for word in phrase.split() for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        pieces: tuple[str, ...] = (*word[:-1], word[-1] + WORD_END)
        while known := [pair for pair in pairwise(pieces) if pair in self._rank]:
            pieces = _merge(pieces, min(known, key=self._rank.__getitem__))
        return [self.vocabulary[piece] for piece in pieces]
