"""Jobs that can be asked themselves: `job.wait()` for `client.wait(job.id)`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

from pydantic import PrivateAttr

from api.client.jobs import Jobs
from api.client.records import JobRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from api.client.core import AsyncCore, Operation, Stream, SyncCore

P = ParamSpec("P")
T = TypeVar("T")


class OfJob(Generic[P, T]):
    """A client's operation on a job as a method of the job."""

    def __init__(self, operation: Operation[Concatenate[str, P], T]) -> None:
        self._operation = operation
        functools.update_wrapper(self, operation.function)  # type: ignore[arg-type]

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self: OfJob[P, JobRecord], owner: Job, kind: type) -> Callable[P, Job]: ...
    @overload
    def __get__(
        self: OfJob[P, JobRecord], owner: AsyncJob, kind: type
    ) -> Callable[P, Coroutine[Any, Any, AsyncJob]]: ...
    @overload
    def __get__(self, owner: Job, kind: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, owner: AsyncJob, kind: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, owner: Any, kind: type) -> Any:
        """Return the method of a job."""
        if owner is None:
            return self
        return functools.partial(self._operation.__get__(owner.client, type(owner.client)), owner.id)


class StreamOfJob(Generic[P, T]):
    """A client's stream about a job as a method of the job."""

    def __init__(self, operation: Stream[Concatenate[str, P], T]) -> None:
        self._operation = operation
        functools.update_wrapper(self, operation.function)  # type: ignore[arg-type]

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: Job, kind: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, owner: AsyncJob, kind: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, owner: Any, kind: type) -> Any:
        """Return the method of a job."""
        if owner is None:
            return self
        return functools.partial(self._operation.__get__(owner.client, type(owner.client)), owner.id)


class _Actions:
    """What a job can be asked."""

    read = OfJob(Jobs.job)
    wait = OfJob(Jobs.wait)
    stream = StreamOfJob(Jobs.events)
    logs = StreamOfJob(Jobs.logs)
    attempts = OfJob(Jobs.attempts)
    cancel = OfJob(Jobs.cancel)
    stop = OfJob(Jobs.stop)
    retry = OfJob(Jobs.retry)
    delete = OfJob(Jobs.delete)
    download = OfJob(Jobs.download)


class _Handle(_Actions, JobRecord):
    _client: Any = PrivateAttr(None)

    @classmethod
    def of(cls, record: JobRecord, client: object) -> Self:
        """Return a job that asks this client."""
        made = cls.model_construct(record.model_fields_set, **dict(record))
        made._client = client  # noqa: SLF001 - its own
        return cast("Self", made)


class Job(_Handle):
    """A job of a `Client`."""

    @property
    def client(self) -> SyncCore:
        """Which client it asks."""
        client: SyncCore = self._client
        return client


class AsyncJob(_Handle):
    """A job of an `AsyncClient`: its methods are to be awaited."""

    @property
    def client(self) -> AsyncCore:
        """Which client it asks."""
        client: AsyncCore = self._client
        return client
