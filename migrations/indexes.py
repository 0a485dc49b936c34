"""Indexes on tables that are in use, built without holding up those who write to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic import op

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement


def build_index(name: str, table: str, columns: Sequence[str | ColumnElement[Any]], **options: Any) -> None:
    """Create an index while the service runs. It is the only act of its revision, since no transaction can hold it.

    It waits for transactions that are under way, and holds up nobody meanwhile, so it has no limits of time. What a
    build that was broken off has left is not usable, and goes first.
    """
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("SET statement_timeout = 0")
        op.drop_index(name, table_name=table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, **options)
        op.execute("RESET lock_timeout")
        op.execute("RESET statement_timeout")


def drop_index(name: str, table: str) -> None:
    """Remove an index while the service runs; likewise the only act of its revision."""
    with op.get_context().autocommit_block():
        op.drop_index(name, table_name=table, if_exists=True, postgresql_concurrently=True)
