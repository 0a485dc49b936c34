"""`python -m migrations`: bring the database of DATABASE_URL to the newest revision. For one-shot containers."""

from __future__ import annotations

import migrations
from api.settings import DatabaseSettings


def main() -> None:
    """Migrate; whoever comes second waits for the first and finds nothing left to do.

    Where a newer version was here there is nothing to do either: this one works on what that has added.
    """
    try:
        migrations.upgrade(DatabaseSettings().url.get_secret_value())
    except migrations.NewerDatabase as newer:
        print(f"nothing to do: {newer}")
    else:
        print(f"the database is at revision {migrations.head()}")


if __name__ == "__main__":
    main()
