"""`python -m api.decoder FD`: waits at a socket for pictures and forks a decoder for each.

Loading Python and Pillow takes longer than most pictures do; a fork of a process that has loaded them takes a
millisecond, and what one picture did to its decoder is gone with it. This process reads no picture itself. It is
started without the API's secrets, and ends when the API's end of the socket closes.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

from PIL import Image, ImageCms, MpoImagePlugin, TiffImagePlugin

from api.decoder import seccomp
from api.decoder.confinement import confine, hide_memory
from api.decoder.lora import read_lora
from api.decoder.picture import FORMATS, read_pixels
from api.decoder.wire import MOST_BYTES, NO_ROOM, STARTED, Bounds, FileRefused, ImageRefused, Size, Told, encode_answer
from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS_AT_ONCE = 256
TOO_MUCH = ImageRefused(
    "unreadable", "Reading the picture takes too much time or memory; save it as a plain PNG or JPEG and resend."
)
LOADED = (MpoImagePlugin, TiffImagePlugin)
"""Pillow loads these when a JPEG has several pictures and when EXIF is asked for: too late for who can open no file."""


def main() -> None:
    """Fork until the other end closes."""
    hide_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the API, which then closes the socket
    control = socket.socket(fileno=int(sys.argv[1]))
    warm_up()
    seccomp.get_ready()
    gc.freeze()
    deadlines: dict[int, float] = {}
    while True:
        wait = max(0.0, min(deadlines.values()) - monotonic()) if deadlines else None
        if select.select([control], [], [], wait)[0]:
            message, files, _, _ = socket.recv_fds(control, MOST_BYTES, 3)
            if not message:
                return
            bounds = Bounds.decode(message)
            with suppress(OSError):  # no room for another process: the other end sees that nobody began
                deadlines[_fork(control, bounds, files)] = monotonic() + bounds.timeout_s
            for file in files:
                os.close(file)
        _look_after(deadlines)


def warm_up() -> None:
    """Take a small picture of each format all the way, so that whatever is loaded late has been loaded."""
    bounds = Bounds(
        max_pixels=64, min_side_px=1, keep_side_px=4, cpu_s=1, timeout_s=1, memory_bytes=1
    )  # no limit is set here
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    for form, mode in (*((form, "RGB") for form in FORMATS), ("PNG", "RGBA"), ("PNG", "I;16")):
        buffer = io.BytesIO()
        Image.new(mode, (8, 8)).save(buffer, format=form, exif=exif, icc_profile=profile)
        buffer.seek(0)
        read_pixels(buffer, bounds)


def _look_after(deadlines: dict[int, float]) -> None:
    """Bury the dead, kill the late. A process id is nobody else's until it is waited for here."""
    for child, deadline in list(deadlines.items()):
        if monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
        if os.waitpid(child, os.WNOHANG)[0]:
            del deadlines[child]


def _fork(control: socket.socket, bounds: Bounds, files: Sequence[int]) -> int:
    """Return the process id of a new decoder, which has the files to itself."""
    child = os.fork()
    if child == 0:
        control.close()
        _decode(bounds, *files)
    return child


def _decode(bounds: Bounds, source: int, target: int, reply: int) -> NoReturn:
    """Turn what is in one file into pixels in the other, say how it went, and end."""
    status = 1
    try:
        confine(bounds)
        os.write(reply, STARTED)
        os.write(reply, encode_answer(_answer(bounds, source, target)))
        status = 0
    finally:
        os._exit(status)


def _answer(bounds: Bounds, source: int, target: int) -> Size | Told | FileRefused:
    try:
        with os.fdopen(source, "rb") as file:
            if bounds.header_bytes:
                return read_lora(file, bounds.header_bytes)
            pixels = read_pixels(file, bounds)
        for top in range(0, pixels.height, ROWS_AT_ONCE):
            strip = pixels.crop((0, top, pixels.width, min(top + ROWS_AT_ONCE, pixels.height)))
            _write(target, strip.tobytes())
    except FileRefused as refusal:
        return refusal
    except InvalidLora as error:
        return FileRefused(error.code, str(error))
    except MemoryError:
        return TOO_MUCH
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        return FileRefused(NO_ROOM, str(error))
    return Size(pixels.width, pixels.height)


def _write(target: int, data: bytes) -> None:
    """Write all of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


if __name__ == "__main__":
    main()
