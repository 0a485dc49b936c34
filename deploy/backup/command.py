"""`duolora backup FOLDER` and `duolora restore FOLDER`, on the database and the store that the environment names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from api.storage import ObjectStore

BACKUP_TEXT = """\
Write all rows of the database, as of one instant, and all objects of the bucket into a new folder, while the service
goes on. The folder holds everything there is, keys' hashes and webhooks' secrets too: keep it as you keep the database.

Reads DATABASE_URL and S3_ENDPOINT, S3_BUCKET, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY, S3_REGION. Ends with status 1 if
the store has lost files that rows name; the backup is whole but for those.
"""
RESTORE_TEXT = """\
Bring back a backup: objects into the bucket, then rows into a database without jobs. The API, the dispatcher and the
workers must be stopped. Stages that ran go on from their checkpoints as soon as there is a worker.

SECRET_KEYS must have the keys that sealed the secrets in the backup, or nothing is restored; --without-keys is for when
they are lost.

Webhooks that were due at the time of the backup are sent, some perhaps for a second time, with the id of the first;
--hold-webhooks is for copies that must not tell anybody.
"""
SHOWN = 20


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `backup` and `restore` to the `duolora` command."""
    raw = argparse.RawDescriptionHelpFormatter
    backup = commands.add_parser(
        "backup", help="write the whole service into a folder", description=BACKUP_TEXT, formatter_class=raw
    )
    backup.set_defaults(run=lambda arguments: _guarded(_back_up, arguments))
    restore = commands.add_parser(
        "restore", help="bring back what `backup` has written", description=RESTORE_TEXT, formatter_class=raw
    )
    restore.add_argument("--hold-webhooks", action="store_true", help="disable all endpoints, send nothing")
    restore.add_argument(
        "--without-keys", action="store_true", help="restore although SECRET_KEYS does not open the secrets in it"
    )
    restore.set_defaults(run=lambda arguments: _guarded(_restore, arguments))
    for parser in (backup, restore):
        parser.add_argument("folder", type=Path, metavar="FOLDER")


def _back_up(arguments: argparse.Namespace, url: str, store: ObjectStore) -> int:
    from deploy.backup.acts import back_up  # noqa: PLC0415 - every `duolora` command loads this module
    from deploy.backup.folder import BackupFolder  # noqa: PLC0415

    taken = back_up(url, store, BackupFolder(arguments.folder))
    megabytes = taken.bytes / 1e6
    print(f"{taken.rows} rows and {taken.manifest.objects} objects ({megabytes:.1f} MB) are in {arguments.folder}")
    for key in taken.lost[:SHOWN]:
        print(f"the store has lost {key}", file=sys.stderr)
    if taken.lost:
        print(f"duolora: the store lacks {len(taken.lost)} files that rows name", file=sys.stderr)
    return 1 if taken.lost else 0


def _restore(arguments: argparse.Namespace, url: str, store: ObjectStore) -> int:
    from api.settings import SealSettings  # noqa: PLC0415 - see above
    from deploy.backup.acts import restore  # noqa: PLC0415
    from deploy.backup.folder import BackupFolder  # noqa: PLC0415

    vault = None if arguments.without_keys else SealSettings().vault()
    folder = BackupFolder(arguments.folder)
    manifest = restore(url, store, folder, vault=vault, hold_webhooks=arguments.hold_webhooks)
    print(f"restored as of {manifest.taken_at}; keys revoked and jobs deleted since then are back")
    return 0


def _guarded(act: Callable[[argparse.Namespace, str, ObjectStore], int], arguments: argparse.Namespace) -> int:
    """Open what the environment names; say on one line what went wrong. Returns the exit status."""
    import psycopg  # noqa: PLC0415 - see above
    from pydantic import ValidationError  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    import migrations  # noqa: PLC0415
    from api.settings import DatabaseSettings, SealSettings, StoreSettings  # noqa: PLC0415
    from api.storage import ObjectStore, StoreError  # noqa: PLC0415
    from deploy.backup.folder import BackupError  # noqa: PLC0415

    try:
        url = DatabaseSettings().url.get_secret_value()
        return act(arguments, url, ObjectStore(StoreSettings()))
    except ValidationError as error:
        first = error.errors()[0]
        prefixes = {DatabaseSettings.__name__: "DATABASE", SealSettings.__name__: "SECRET"}
        prefix = prefixes.get(error.title, "S3")
        reason = f"{prefix}_{str(first['loc'][0]).upper()}: {first['msg']}"
    except (BackupError, StoreError, OSError, migrations.MigrationBlocked, migrations.NewerDatabase) as error:
        reason = str(error)
    except (psycopg.Error, SQLAlchemyError) as error:
        reason = f"the database of DATABASE_URL cannot be used: {str(error).partition(chr(10))[0]}"
    print(f"duolora: {reason}", file=sys.stderr)
    return 1
