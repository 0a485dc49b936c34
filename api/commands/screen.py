"""What commands show: tables and records for people on standard output, or JSON for programs."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import BaseModel

    Columns = Mapping[str, Callable[[Any], object]]

NOTHING = "-"


class Screen:
    """Where a command speaks. Progress and remarks go to standard error, so that results can be piped.

    Args:
        as_json: whether results are JSON documents.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._err = Console(stderr=True, highlight=False)

    def records(self, items: Sequence[BaseModel], columns: Columns) -> None:
        """Show a table, a row for each item; as JSON the whole items in an array."""
        if self.as_json:
            self._document([_plain(item) for item in items])
        else:
            self._table(items, columns)

    def tables(self, item: BaseModel, *parts: tuple[Sequence[Any], Columns]) -> None:
        """Show one thing as several tables, of those parts of it that have rows; as JSON the whole of it."""
        if self.as_json:
            self._document(_plain(item))
            return
        for place, (rows, columns) in enumerate(part for part in parts if part[0]):
            if place:
                self._out.print()
            self._table(rows, columns)

    def record(self, item: BaseModel, lines: Columns) -> None:
        """Show one thing, line by line; as JSON the whole of it. Lines with nothing to say are left out."""
        if self.as_json:
            self._document(_plain(item))
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, look in lines.items():
            if (said := _text(look(item))).plain != NOTHING:
                table.add_row(name, said)
        self._out.print(table)

    def line(self, item: BaseModel, text: str) -> None:
        """Show one of many things that come one after another; as JSON on a line of its own."""
        if self.as_json:
            print(json.dumps(_plain(item)), flush=True)
        else:
            self._out.print(text, markup=False)

    def document(self, document: object, text: str) -> None:
        """Show a text; as JSON a document."""
        if self.as_json:
            self._document(document)
        else:
            self._out.print(text, markup=False)

    def remark(self, text: str) -> None:
        """Say something that is no result."""
        self._err.print(text, markup=False)

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None] | None]:
        """Show bytes on their way; on no terminal nothing is shown, and None is what to call."""
        if not self._err.is_terminal:
            yield None
            return
        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(what, total=None)

            def see(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            yield see

    @contextmanager
    def following(self) -> Iterator[Callable[[Any], None]]:
        """Show a job's progress as it gets further."""
        if not self._err.is_terminal:
            yield _unseen
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        with Progress(*columns, TextColumn("{task.fields[left]}"), console=self._err, transient=True) as bar:
            task = bar.add_task("waiting", total=1.0, left="")

            def see(job: Any) -> None:  # noqa: ANN401 - a job of either client
                now = job.progress
                stage = job.state if now.stage is None else f"{now.stage} {now.step or 0}/{now.total or '?'}"
                loss = "" if now.loss is None else f" loss {now.loss:.4f}"
                left = "" if now.eta_seconds is None else f"{now.eta_seconds:.0f} s left"
                bar.update(task, completed=now.fraction, description=stage + loss, left=left)

            yield see

    def _table(self, items: Sequence[Any], columns: Columns) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(name, no_wrap=name == "id")
        for item in items:
            table.add_row(*(_text(look(item)) for look in columns.values()))
        self._out.print(table)

    def _document(self, document: object) -> None:
        print(json.dumps(document, indent=1))


def _unseen(_: object) -> None:
    """Show nothing."""


def _plain(item: BaseModel) -> dict[str, Any]:
    return item.model_dump(mode="json")


def _text(value: object) -> Text:
    """Return what a cell says, as it is: names are no markup."""
    return Text(_words(value))


def _words(value: object) -> str:
    match value:
        case None | "" | () | []:
            return NOTHING
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case tuple() | list():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def names(items: Iterable[str]) -> str:
    """Return names in a row."""
    return ", ".join(items)
