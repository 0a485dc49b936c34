"""Where strangers' pictures are decoded, a few requests at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.jobs import images
from api.places import Places

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from api.jobs.images import CleanImage, ImageRefused
    from api.jobs.sources import ReceivedFile
    from api.settings import ImageLimits


class Darkroom:
    """The places for decoding that a process has; all of its requests share them."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._places = Places(
            limits.parallel,
            wait_s=limits.wait_s,
            refusal="Too many pictures are being read at the moment; send the job again.",
        )

    def develop(self, files: Sequence[ReceivedFile], folder: Path) -> list[CleanImage | ImageRefused]:
        """Write every picture anew into a folder; one that cannot be used has its refusal in place of it.

        Raises:
            Unavailable: too many requests are having pictures read.
        """
        if not files:
            return []
        with self._places.taken():
            return [self._clean(file, folder / f"{number}.png") for number, file in enumerate(files)]

    def _clean(self, file: ReceivedFile, path: Path) -> CleanImage | ImageRefused:
        try:
            return images.clean(file.file, file.size, path, self._limits)
        except images.ImageRefused as refusal:
            return refusal
