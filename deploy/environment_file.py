"""`make env`: write .env from .env.example, with a new secret for every variable that is empty there.

With the standard library alone, because it runs before anything is installed.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / ".env.example"
SECRET_BYTES = 24
"""As hexadecimal digits they stand in URLs, shells and configuration files without quotes."""


def filled(example: str) -> str:
    """Return the text of an example with a secret of its own after every `NAME=` that has no value."""
    return re.sub(r"^(\w+=)$", lambda name: name[1] + secrets.token_hex(SECRET_BYTES), example, flags=re.MULTILINE)


def write(path: Path, example: str) -> None:
    """Write a filled example that only its owner can read.

    Raises:
        FileExistsError: there is such a file; its secrets may be in use, so it is left as it is.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(filled(example))


def main() -> int:
    """Write .env into the working folder; the exit status is 1 if there is one."""
    path = Path(".env")
    try:
        write(path, EXAMPLE.read_text())
    except FileExistsError:
        print(
            f"{path} is there already and stays as it is: the database and the store may have been started with its "
            "secrets. To begin anew, docker compose down --volumes and remove it.",
            file=sys.stderr,
        )
        return 1
    print(f"wrote {path} with new secrets; read it before the first docker compose up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
