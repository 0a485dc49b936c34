"""The Chromium of the console's tests: `python -m tests.console.browser` sees to it that there is one.

It takes the system's, else the one that Playwright has downloaded. Where there is neither, root installs Debian's
package, and everybody else lets Playwright download its own. Where none of that works, say without a network, the
tests are left out, and the end of the run says so; DUOLORA_BROWSER=required makes that a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WISH = "DUOLORA_BROWSER"
REQUIRED, NONE = "required", "none"
"""What the variable may say: fail without one, or leave these tests out."""
INSTALL_S = 300
"""For one command that installs."""
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PACKAGES = ("chromium", "fonts-liberation")
MISSING = f"""\
No Chromium was found, so the web console cannot be tested. Any of these helps:
  make test                                        installs one
  apt-get install chromium fonts-liberation        as root, on Debian
  .venv/bin/python -m playwright install chromium  downloads one
{WISH}={REQUIRED} makes its absence a failure, {WISH}={NONE} leaves these tests out."""


def find() -> str | None:
    """Return the path of a Chromium."""
    for name in NAMES:
        if (found := shutil.which(name)) is not None:
            return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def install() -> None:
    """Install a Chromium; one that could not be installed is not found afterwards."""
    apt = shutil.which("apt-get")
    if apt is not None and os.geteuid() == 0:
        _say("Installing Debian's Chromium, for the tests of the web console ...")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            _run([apt, "-qq", "-o", "Acquire::http::Timeout=20", *command], environment)
        if find() is not None:
            return
    _say("Downloading Playwright's Chromium, for the tests of the web console ...")
    _run([sys.executable, "-m", "playwright", "install", "chromium"], os.environ)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run what may fail, for as long as it may take."""
    with suppress(subprocess.TimeoutExpired, OSError):
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False, timeout=INSTALL_S)


def is_required() -> bool:
    """Say whether the tests must run."""
    return os.environ.get(WISH) == REQUIRED


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> int:
    """Find or install one. Returns the exit status."""
    if os.environ.get(WISH) == NONE:
        return 0
    if find() is None:
        install()
    if find() is not None:
        return 0
    _say(MISSING)
    return 1 if is_required() else 0


if __name__ == "__main__":
    sys.exit(main())
