"""The API's side of the decoder: starts the process that forks decoders, hands it pictures, waits for each."""

from __future__ import annotations

import atexit
import io
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, BinaryIO

from api.decoder.confinement import hide_memory
from api.decoder.seccomp import obstacle
from api.decoder.wire import (
    BYTES_PER_PIXEL,
    END,
    MOST_BYTES,
    NO_ROOM,
    STARTED,
    FileRefused,
    ImageRefused,
    Size,
    Told,
    decode_answer,
)
from api.errors import Unavailable
from api.spooling import no_room

if TYPE_CHECKING:
    from api.decoder.wire import Bounds

log = logging.getLogger(__name__)

SLACK_S = 10.0
"""How long after a decoder's time is over its end is waited for: it may have to be loaded first."""
EXIT_S = 2.0
TRIES = 3
"""That the process has died may be found out by a picture that nobody took, and by a second that cannot be sent."""

UNREADABLE = "Reading the picture failed or took too much time or memory; save it as a plain PNG or JPEG and resend."


UNREADABLE_LORA = "Reading its header failed or took too much time or memory; send the file that the trainer wrote."


class Decoder:
    """Decodes pictures in processes of their own, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Process id of what forks decoders, None before the first picture."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, if it does not run. Whoever comes before it has loaded waits."""
        with self._lock:
            self._started()

    def stop(self) -> None:
        """End it."""
        with self._lock:
            self._end()

    def decode(self, source: BinaryIO, target: int, bounds: Bounds) -> Size:
        """Write a picture's pixels, upright sRGB, into an empty file: rows of three bytes each, without gaps.

        Args:
            source: the picture.
            target: descriptor of the file.
            bounds: what is accepted.

        Raises:
            ImageRefused: it cannot be used, or it killed its decoder.
            Unavailable: no decoder can be started, or there is no room for the pixels.
        """
        answer = self._answer(source, target, bounds)
        if isinstance(answer, FileRefused):
            raise ImageRefused(answer.code, answer.detail)
        if not isinstance(answer, Size) or not _is_borne_out(answer, target, bounds):
            raise ImageRefused("unreadable", UNREADABLE)
        return answer

    def read_lora(self, source: BinaryIO, bounds: Bounds) -> Told:
        """Return what the header of a LoRA tells.

        Args:
            source: the file.
            bounds: with `header_bytes`.

        Raises:
            FileRefused: it is no LoRA, or it killed its decoder.
            Unavailable: no decoder can be started.
        """
        with source as file:
            answer = self._answer(file, file.fileno(), bounds)
        if isinstance(answer, Told):
            return answer
        raise answer if isinstance(answer, FileRefused) else FileRefused("invalid_lora", UNREADABLE_LORA)

    def _answer(self, source: BinaryIO, target: int, bounds: Bounds) -> Size | Told | FileRefused | None:
        """Return what a decoder said of a file, None if that is no sentence.

        Raises:
            Unavailable: no decoder can be started, or there is no room for what it makes.
        """
        with _as_file(source) as file:
            for _ in range(TRIES):
                message = self._ask(file.fileno(), target, bounds)
                if message:
                    answer = decode_answer(message.removeprefix(STARTED))
                    if isinstance(answer, FileRefused) and answer.code == NO_ROOM:
                        raise no_room()
                    return answer
        raise Unavailable("No file can be looked at at the moment; send it again.", code="busy")

    def _ask(self, source: int, target: int, bounds: Bounds) -> bytes:
        """Return what the decoder said until it ended; nothing if none began."""
        os.lseek(source, 0, os.SEEK_SET)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                if not self._hand_over(bounds, [source, target, theirs.fileno()]):
                    return b""
            ours.settimeout(bounds.timeout_s + SLACK_S)
            return _read_all(ours)

    def _hand_over(self, bounds: Bounds, files: list[int]) -> bool:
        """Send a picture; False if nobody was there to take it."""
        with self._lock:
            try:
                socket.send_fds(self._started(), [bounds.encode()], files)
            except OSError as error:
                log.warning("what decodes pictures has died and is started again: %s", error)
                self._end()
                return False
        return True

    def _end(self) -> None:
        """End the process, if there is one."""
        if self._control is not None and self._process is not None:
            self._control.close()
            try:
                self._process.wait(EXIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._control = None

    def _started(self) -> socket.socket:
        """Return the way to a running process."""
        if self._control is not None:
            return self._control
        if (reason := obstacle()) is not None:
            log.warning("a decoder that was taken over could signal this process: %s", reason)
        hide_memory()  # a decoder is of the same user, unless that is root
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "api.decoder", str(theirs.fileno())],
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._control = ours
        atexit.register(self.stop)
        return ours


def _as_file(source: BinaryIO) -> BinaryIO:
    """Return a file that another process can read, to be closed by the caller: its own descriptor, or a copy."""
    try:
        source.flush()
        return os.fdopen(os.dup(source.fileno()), "rb")
    except (AttributeError, io.UnsupportedOperation):
        source.seek(0)
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        shutil.copyfileobj(source, copy)
        copy.flush()
        return copy


def _read_all(ours: socket.socket) -> bytes:
    """Return what comes until a whole answer, the end or the timeout."""
    said = b""
    try:
        while not said.endswith(END) and len(said) <= MOST_BYTES and (part := ours.recv(MOST_BYTES)):
            said += part
    except TimeoutError:
        log.exception("a decoder did not end in time")
    return said


def _is_borne_out(answer: Size, target: int, bounds: Bounds) -> bool:
    """Believe a decoder only what its output bears out."""
    if answer.width * answer.height > bounds.max_pixels:
        return False
    return os.fstat(target).st_size == answer.width * answer.height * BYTES_PER_PIXEL


DECODER = Decoder()
"""One for the process: it holds no file and no setting."""
