"""What all operations are made of: asking, asking again, reading page by page; and how they become methods.

An operation is a coroutine function, written once; `Operation` makes a method of it that blocks on a `Client` and is to
be awaited on an `AsyncClient`. A stream is an asynchronous generator function, and `Stream` does the same for it.
"""

from __future__ import annotations

import functools
import random
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

import httpx

from api.client.errors import ServiceRefused, refusal
from api.client.records import JobRecord
from api.client.wires import Ask, AsyncWire, SyncWire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

    from api.client.handles import AsyncJob, Job
    from api.client.wires import Wire

P = ParamSpec("P")
T = TypeVar("T")

AWAY = frozenset({502, 503, 504})
"""Statuses by which the service, or a proxy in front of it, says that it cannot answer now."""
RETRIES = 3
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
"""Who is told to come again later than that is refused at once."""
_REPEATABLE = frozenset({"GET", "PUT", "DELETE"})


class Core(ABC):
    """What both clients have."""

    def __init__(self, wire: Wire, *, timeout_s: float, retries: int) -> None:
        self._wire = wire
        self._usual = httpx.Timeout(timeout_s)
        self._retries = retries

    @abstractmethod
    def handle(self, job: JobRecord) -> JobRecord:
        """Return a job that can be asked itself."""

    async def _request(
        self,
        method: str,
        url: str,
        *,
        repeatable: bool = False,
        retries: int | None = None,
        **options: Any,  # noqa: ANN401 - httpx's own words
    ) -> httpx.Response:
        """Ask, and ask again if that can help: when the service says so, else after a longer and longer pause.

        One request too many is asked again whatever it was: nothing was done. Where the service did not answer, or said
        that it cannot now, only what may be done twice is repeated: reading, deleting, what has an idempotency key.

        Raises:
            ServiceRefused: the answer is an error that asking again does not mend.
            httpx.TransportError: there was no answer.
        """
        left = self._retries if retries is None else retries
        may_repeat = repeatable or method in _REPEATABLE
        pause_s = FIRST_PAUSE_S
        while True:
            wait_s = pause_s * (1 + random.random() / 4)
            try:
                response = await self._wire.send(Ask(method, url, options))
            except httpx.TransportError:
                if not may_repeat or left <= 0:
                    raise
            else:
                if not response.is_error:
                    return response
                error = refusal(response)
                wait_s = wait_s if error.retry_after_s is None else error.retry_after_s
                if not _is_worth_another(error, may_repeat=may_repeat) or left <= 0 or wait_s > LONGEST_PAUSE_S:
                    raise error
            await self._wire.sleep(wait_s)
            left, pause_s = left - 1, pause_s * 2

    async def _document(self, method: str, url: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """Ask for a JSON document; see `_request`."""
        response = await self._request(method, url, **options)
        document: dict[str, Any] = response.json()
        return document

    async def _pages(self, url: str, query: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Give the items of all pages."""
        cursor: dict[str, str] = {}
        while True:
            page = await self._document("GET", url, params={**query, **cursor})
            for item in page["items"]:
                yield item
            if not page.get("next_cursor"):
                return
            cursor = {"cursor": page["next_cursor"]}

    async def _close(self) -> None:
        await self._wire.close()


def _is_worth_another(error: ServiceRefused, *, may_repeat: bool) -> bool:
    code = error.problem.get("code")
    if error.status == httpx.codes.TOO_MANY_REQUESTS:
        return code != "quota_exceeded"
    return may_repeat and (error.status in AWAY or code == "idempotency_in_flight")


class SyncCore(Core):
    """Waits for its operations."""

    def __init__(self, base_url: str, api_key: str, *, timeout_s: float = 60, retries: int = RETRIES) -> None:
        self.wire = SyncWire(base_url, _headers(api_key), timeout_s)
        super().__init__(self.wire, timeout_s=timeout_s, retries=retries)

    def __enter__(self) -> Self:
        """Use as a context manager to close the connections."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        finish(self._close())


class AsyncCore(Core):
    """Lets its operations be awaited."""

    def __init__(self, base_url: str, api_key: str, *, timeout_s: float = 60, retries: int = RETRIES) -> None:
        self.wire = AsyncWire(base_url, _headers(api_key), timeout_s)
        super().__init__(self.wire, timeout_s=timeout_s, retries=retries)

    async def __aenter__(self) -> Self:
        """Use as a context manager to close the connections."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._close()


class Operation(Generic[P, T]):
    """A method of both clients, from one coroutine function."""

    def __init__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        self.function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # for help() and the like

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self: Operation[P, JobRecord], owner: SyncCore, kind: type) -> Callable[P, Job]: ...
    @overload
    def __get__(
        self: Operation[P, JobRecord], owner: AsyncCore, kind: type
    ) -> Callable[P, Coroutine[Any, Any, AsyncJob]]: ...
    @overload
    def __get__(self, owner: SyncCore, kind: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, owner: AsyncCore, kind: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, owner: object, kind: type) -> object:
        """Return the method of a client."""
        if owner is None:
            return self

        @functools.wraps(self.function)
        async def made(*arguments: P.args, **options: P.kwargs) -> Any:  # noqa: ANN401 - T, and a job can be asked itself
            return _asked(owner, await self.function(owner, *arguments, **options))

        @functools.wraps(self.function)
        def call(*arguments: P.args, **options: P.kwargs) -> Any:  # noqa: ANN401
            return finish(made(*arguments, **options))

        return made if isinstance(owner, AsyncCore) else call


class Stream(Generic[P, T]):
    """A method of both clients that gives one thing after another, from one asynchronous generator function."""

    def __init__(self, function: Callable[Concatenate[Any, P], AsyncIterator[T]]) -> None:
        self.function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # for help() and the like

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self: Stream[P, JobRecord], owner: SyncCore, kind: type) -> Callable[P, Iterator[Job]]: ...
    @overload
    def __get__(self: Stream[P, JobRecord], owner: AsyncCore, kind: type) -> Callable[P, AsyncIterator[AsyncJob]]: ...
    @overload
    def __get__(self, owner: SyncCore, kind: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, owner: AsyncCore, kind: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, owner: object, kind: type) -> object:
        """Return the method of a client."""
        if owner is None:
            return self

        @functools.wraps(self.function)
        async def made(*arguments: P.args, **options: P.kwargs) -> AsyncIterator[Any]:
            items = self.function(owner, *arguments, **options)
            try:
                async for item in items:
                    yield _asked(owner, item)
            finally:
                await items.aclose()  # type: ignore[attr-defined]  # it is a generator

        @functools.wraps(self.function)
        def call(*arguments: P.args, **options: P.kwargs) -> Iterator[Any]:
            return _each(made(*arguments, **options))

        return made if isinstance(owner, AsyncCore) else call


def _asked(owner: object, value: object) -> object:
    """Return what an operation returned; a job as one that can be asked itself."""
    return owner.handle(value) if isinstance(value, JobRecord) and isinstance(owner, Core) else value


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends to its end."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    coroutine.close()
    raise AssertionError("a coroutine of a blocking client was to wait for something")


def _each(items: AsyncIterator[T]) -> Iterator[T]:
    """Give what an asynchronous generator that never suspends gives."""
    try:
        while True:
            try:
                yield finish(_next(items))
            except StopAsyncIteration:
                return
    finally:
        finish(items.aclose())  # type: ignore[attr-defined]  # it is a generator


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


def once(key: str | None) -> dict[str, str]:
    """Return the field by which a request may be sent again; without a key of the caller's, one is made."""
    return {"Idempotency-Key": key or str(uuid.uuid4())}


def several(values: str | Sequence[str]) -> list[str]:
    """Return one value or several as a list."""
    return [values] if isinstance(values, str) else list(values)


def _headers(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"}
