"""TCP proxies between the services and their servers: each can be cut, fall silent, dawdle, or answer that it is full.

They also give every server one address for its whole life, wherever it listens after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from deploy.local.processes import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Coroutine

CHUNK_BYTES = 65_536
LOOK_S = 0.05
"""How often a held chunk looks whether it may go on."""
FULL = (
    b"HTTP/1.1 507 Insufficient Storage\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: 59\r\n\r\n<Error><Code>InsufficientStorage</Code><Message/></Error>\r\n"
)


class Mode(StrEnum):
    """What a proxy does with what it is given."""

    OPEN = "open"
    CUT = "cut"
    """Connections are reset, new ones as well."""
    SILENT = "silent"
    """Nothing passes in either direction; it does, late, once the proxy is open again."""
    DEAF = "deaf"
    """Requests pass, answers are held back."""
    TRAP = "trap"
    """Redis only: deaf from the first push on, so that whoever pushed never learns that it did."""
    SLOW = "slow"
    """Every chunk waits first."""
    FULL = "full"
    """HTTP only: whatever writes is answered with 507."""


class Refused(Exception):
    """A write that the proxy answers by itself."""

    def __init__(self, head: bytes) -> None:
        super().__init__("full")
        self.head = head


class Proxy:
    """One listening port in front of one server; `mode` and `upstream` may change at any time."""

    def __init__(self, name: str, upstream: int, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.upstream = upstream
        self.mode = Mode.OPEN
        self.delay_s = 0.0
        self.port = 0
        self._loop = loop
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Take no more connections and end those there are; on the loop's thread."""
        if self._server is not None:
            self._server.close()
        self._abort()

    def set(self, mode: Mode, *, delay_s: float = 0.0) -> None:
        """Behave differently from now on, also on connections from before; from any thread but the loop's."""
        self.mode, self.delay_s = mode, delay_s
        if mode in {Mode.CUT, Mode.FULL}:  # a connection kept from before would escape it
            self.drop()

    def drop(self) -> None:
        """Reset all connections; when this returns, they are. From any thread but the loop's."""
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result(10)

    async def _drop(self) -> None:
        self._abort()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next round

    def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode is Mode.CUT:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(LOOPBACK, self.upstream)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        pumps = [
            asyncio.ensure_future(self._pump(reader, up_writer, outward=True)),
            asyncio.ensure_future(self._pump(up_reader, writer, outward=False)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            for result in await asyncio.gather(*pumps, return_exceptions=True):
                if isinstance(result, Refused):
                    await self._refuse(result.head, reader, writer)
        except asyncio.CancelledError:  # the switchboard closes; asyncio's streams cannot bear a canceled handler
            for pump in pumps:
                pump.cancel()
        finally:
            self._writers -= {writer, up_writer}
            for end in (writer, up_writer):
                with contextlib.suppress(OSError, RuntimeError):
                    end.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, outward: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(CHUNK_BYTES):
                if outward and self.mode is Mode.FULL and chunk.startswith((b"PUT ", b"POST ")):
                    raise Refused(chunk)
                if self.mode is Mode.SLOW:
                    await asyncio.sleep(self.delay_s)
                while self.mode is Mode.SILENT or (self.mode is Mode.DEAF and not outward):
                    await asyncio.sleep(LOOK_S)
                if outward and self.mode is Mode.TRAP and b"LPUSH" in chunk:
                    self.mode = Mode.DEAF
                sink.write(chunk)
                await sink.drain()

    @staticmethod
    async def _refuse(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read what was announced, so that the answer is not lost in a reset, and answer."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            if length and b"100-continue" not in head.lower():
                rest = int(length[1]) - len(head.partition(b"\r\n\r\n")[2])
                while rest > 0 and (chunk := await asyncio.wait_for(reader.read(CHUNK_BYTES), 2)):
                    rest -= len(chunk)
            writer.write(FULL)
            await writer.drain()


class Switchboard:
    """All proxies of one installation, served by one thread."""

    def __init__(self) -> None:
        self.proxies: dict[str, Proxy] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="switchboard", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, name: str, upstream: int) -> Proxy:
        """Put a proxy in front of a loopback port."""
        proxy = Proxy(name, upstream, self._loop)
        self._do(proxy.listen())
        self.proxies[name] = proxy
        return proxy

    def named(self, prefix: str) -> list[Proxy]:
        """The proxies whose name begins so."""
        return [proxy for name, proxy in self.proxies.items() if name.startswith(prefix)]

    def open_all(self) -> None:
        """End whatever they do."""
        for proxy in self.proxies.values():
            proxy.set(Mode.OPEN)

    async def _close(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(LOOK_S)  # transports close in callbacks

    def _do(self, act: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(act, self._loop).result(10)
