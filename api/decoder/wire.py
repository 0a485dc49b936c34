"""What the API and the decoder tell each other. Knows the standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

STARTED = b"+"
"""A decoder's first byte: the picture is in its hands, so whatever ends it from here on is the picture's fault."""
MOST_BYTES = 4096
"""No message is longer."""
NO_ROOM = "no_room"
"""Code of a refusal that is not the picture's fault: its pixels could not be written down."""
BYTES_PER_PIXEL = 3
"""Red, green and blue."""
MOST_DETAIL = 300
"""Characters of a refusal; as JSON each may take twelve bytes."""
LORA_FORMATS = frozenset({"diffusers", "kohya", "peft", "other"})
END = b"\n"
"""Of a decoder's answer: its process need not be gone before it is read."""


class FileRefused(Exception):
    """A file cannot be used; the message is for its owner."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class ImageRefused(FileRefused):
    """A picture cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a picture may be, and what decoding it may take."""

    max_pixels: int
    min_side_px: int
    keep_side_px: int
    """A picture whose shorter side is longer is scaled down to it."""
    cpu_s: int
    """Seconds of computing."""
    timeout_s: float
    """Seconds by the clock."""
    memory_bytes: int
    """Address space."""
    header_bytes: int = 0
    """Above 0 the file is a LoRA: its header, of so many bytes at most, is read, and no picture."""

    def encode(self) -> bytes:
        """Return the message."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, message: bytes) -> Bounds:
        """Read the message."""
        return cls(**json.loads(message))


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Told:
    """What the header of a LoRA tells."""

    format: str
    """One of `LORA_FORMATS`."""
    rank: int
    """Highest of its layers."""
    mock: bool
    """It says of itself that the mock engine wrote it."""


def encode_answer(answer: Size | Told | FileRefused) -> bytes:
    """Return what a decoder says at its end."""
    if isinstance(answer, FileRefused):
        said = {"code": answer.code, "detail": answer.detail[:MOST_DETAIL]}
    else:
        said = asdict(answer)
    return json.dumps(said).encode() + END


def decode_answer(message: bytes) -> Size | Told | FileRefused | None:
    """Read what a decoder said; None if it is not one of its sentences, for it had a stranger's bytes in its hands."""
    try:
        match json.loads(message):
            case {"width": int(width), "height": int(height)} if width > 0 and height > 0:
                return Size(width, height)
            case {"code": str(code), "detail": str(detail)}:
                return FileRefused(code, detail)
            case {"format": str(form), "rank": int(rank), "mock": bool(mock)} if form in LORA_FORMATS and rank > 0:
                return Told(form, rank, mock)
    except ValueError:
        pass
    return None
