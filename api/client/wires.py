"""How requests go out and answers come in: for callers that wait, and for callers that await.

Everything else of the client is written once, as coroutines. Those of a `SyncWire` never suspend: it does all at once,
so they run to their end by one step.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@dataclass(frozen=True, slots=True)
class Ask:
    """A request."""

    method: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    """As httpx names them."""
    of_store: bool = False
    """Files come from the store by signed links: it must not see the key."""

    def build(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Make it one of a client's."""
        options = {"timeout": client.timeout, **self.options}
        return client.build_request(self.method, self.url, **options)


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer whose body is read part by part; that of a refusal is there."""

    response: httpx.Response
    parts: Any


class Wire(Protocol):
    """What the coroutines of the client await."""

    async def send(self, ask: Ask) -> httpx.Response:
        """Send a request and read the whole answer."""

    async def open(self, ask: Ask, by: Literal["lines", "bytes"]) -> Streamed:
        """Send a request and read the beginning of the answer."""

    async def read_on(self, answer: Streamed) -> Any:  # noqa: ANN401 - text or bytes, as it was opened
        """Return the next part of an answer; None at its end."""

    async def drop(self, answer: Streamed) -> None:
        """Read no more of an answer."""

    async def sleep(self, seconds: float) -> None:
        """Do nothing for a while."""

    async def tell(self, callback: Callable[[Any], object], value: object) -> None:
        """Call the caller back."""

    async def close(self) -> None:
        """Close the connections."""


class SyncWire:
    """Blocks."""

    def __init__(self, base_url: str, headers: dict[str, str], timeout_s: float) -> None:
        self.api = httpx.Client(
            base_url=base_url, headers=headers, timeout=timeout_s, transport=httpx.HTTPTransport(retries=2)
        )
        self.store = httpx.Client(timeout=timeout_s, transport=httpx.HTTPTransport(retries=2))

    async def send(self, ask: Ask) -> httpx.Response:
        """See `Wire`."""
        client = self._client(ask)
        return client.send(ask.build(client))

    async def open(self, ask: Ask, by: Literal["lines", "bytes"]) -> Streamed:
        """See `Wire`."""
        client = self._client(ask)
        response = client.send(ask.build(client), stream=True)
        if response.is_error:
            response.read()
        parts: Iterator[Any] = response.iter_lines() if by == "lines" else response.iter_bytes()
        return Streamed(response, parts)

    async def read_on(self, answer: Streamed) -> Any:  # noqa: ANN401 - see Wire
        """See `Wire`."""
        return next(answer.parts, None)

    async def drop(self, answer: Streamed) -> None:
        """See `Wire`."""
        answer.response.close()

    async def sleep(self, seconds: float) -> None:
        """See `Wire`."""
        time.sleep(seconds)

    async def tell(self, callback: Callable[[Any], object], value: object) -> None:
        """See `Wire`."""
        callback(value)

    async def close(self) -> None:
        """See `Wire`."""
        self.api.close()
        self.store.close()

    def _client(self, ask: Ask) -> httpx.Client:
        return self.store if ask.of_store else self.api


class AsyncWire:
    """Awaits."""

    def __init__(self, base_url: str, headers: dict[str, str], timeout_s: float) -> None:
        self.api = httpx.AsyncClient(
            base_url=base_url, headers=headers, timeout=timeout_s, transport=httpx.AsyncHTTPTransport(retries=2)
        )
        self.store = httpx.AsyncClient(timeout=timeout_s, transport=httpx.AsyncHTTPTransport(retries=2))

    async def send(self, ask: Ask) -> httpx.Response:
        """See `Wire`."""
        client = self._client(ask)
        return await client.send(ask.build(client))

    async def open(self, ask: Ask, by: Literal["lines", "bytes"]) -> Streamed:
        """See `Wire`."""
        client = self._client(ask)
        response = await client.send(ask.build(client), stream=True)
        if response.is_error:
            await response.aread()
        parts: AsyncIterator[Any] = response.aiter_lines() if by == "lines" else response.aiter_bytes()
        return Streamed(response, parts)

    async def read_on(self, answer: Streamed) -> Any:  # noqa: ANN401 - see Wire
        """See `Wire`."""
        return await anext(answer.parts, None)

    async def drop(self, answer: Streamed) -> None:
        """See `Wire`."""
        await answer.response.aclose()

    async def sleep(self, seconds: float) -> None:
        """See `Wire`."""
        await asyncio.sleep(seconds)

    async def tell(self, callback: Callable[[Any], object], value: object) -> None:
        """See `Wire`. The callback may be a coroutine function."""
        said = callback(value)
        if inspect.isawaitable(said):
            await said

    async def close(self) -> None:
        """See `Wire`."""
        await self.api.aclose()
        await self.store.aclose()

    def _client(self, ask: Ask) -> httpx.AsyncClient:
        return self.store if ask.of_store else self.api
