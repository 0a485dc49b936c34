"""How a command reaches the service, and what its exit status says.

| status | meaning |
| --- | --- |
| 0 | done |
| 1 | a file cannot be read or written, or something failed on the service's side |
| 2 | the command, or a field of the request, is at fault |
| 3 | the key is refused, or lacks a scope |
| 4 | there is no such thing, or it was deleted |
| 5 | its state forbids that, or a limit is reached |
| 6 | the job failed, was canceled or expired |
| 7 | the service does not answer |
| 8 | the time that was to be waited is over; the job goes on |
| 130 | interrupted |
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from api.commands.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Callable

    from api.client import Client

    Act = Callable[[Client, argparse.Namespace, Screen], None]

URL_VARIABLE = "DUOLORA_URL"
KEY_VARIABLE = "DUOLORA_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"

FAILED, USAGE, KEY, MISSING, REFUSED, NOT_SUCCEEDED, AWAY, LATE = range(1, 9)
_STATUSES = {400: USAGE, 422: USAGE, 401: KEY, 403: KEY, 404: MISSING, 410: MISSING}
_STATUSES |= dict.fromkeys((409, 413, 415, 429), REFUSED) | dict.fromkeys((502, 503, 504), AWAY)

EPILOG = f"""\
The service is at {URL_VARIABLE} ({DEFAULT_URL} if that is not set) and is given the key of {KEY_VARIABLE}.

exit status: 0 done; 1 a file or the service failed; 2 the command or a field is at fault; 3 the key is refused or
lacks a scope; 4 there is no such thing; 5 its state or a limit forbids that; 6 the job did not succeed; 7 the service
does not answer; 8 the wait is over, the job goes on; 130 interrupted
"""


class Unfit(Exception):
    """A command has shown what it found, and that is nothing good: it ends with this status."""

    def __init__(self, text: str, status: int) -> None:
        self.status = status
        super().__init__(text)


class Group:
    """A noun of the `duolora` command, with a verb for each thing that can be done.

    Args:
        commands: of the whole command.
        noun: its name.
        about: one line of help.
    """

    def __init__(self, commands: argparse._SubParsersAction[argparse.ArgumentParser], noun: str, about: str) -> None:
        form = argparse.RawDescriptionHelpFormatter
        self.parser = commands.add_parser(noun, help=about, description=about, epilog=EPILOG, formatter_class=form)
        self.verbs = self.parser.add_subparsers(metavar="VERB", required=True)

    def verb(self, name: str, about: str, act: Act, *positional: str) -> argparse.ArgumentParser:
        """Add a verb that speaks to the service; returns its parser, for its options."""
        form = argparse.RawDescriptionHelpFormatter
        parser = self.verbs.add_parser(name, help=about, description=about, epilog=EPILOG, formatter_class=form)
        for each in positional:
            parser.add_argument(each)
        parser.add_argument("--url", help=f"where the service is (now: {service_url(None).replace('%', '%%')})")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(run=online(act))
        return parser


def service_url(given: str | None) -> str:
    """Return where the service is."""
    return (given or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")


def online(act: Act) -> Callable[[argparse.Namespace], int]:
    """Return a command that does something with a client, and whose status says how that went."""

    def run(arguments: argparse.Namespace) -> int:
        url, key = service_url(arguments.url), os.environ.get(KEY_VARIABLE)
        if not key:
            return _say(f"set {KEY_VARIABLE} to a key of {url}; `duolora up` prints one", KEY)
        try:
            from api.client import Client  # noqa: PLC0415 - every `duolora` command loads this module

            with Client(url, key) as client:
                act(client, arguments, Screen(as_json=arguments.json))
        except ImportError as error:
            return _say(f"{error.name} is missing: pip install 'duolora[client]'", FAILED)
        except argparse.ArgumentTypeError as error:
            return _say(str(error), USAGE)
        except Unfit as found:
            return _say(str(found), found.status)
        except Exception as error:
            status = _status(error)
            if status is None:
                raise
            return _say(_words(error, url), status)
        return 0

    return run


def _status(error: Exception) -> int | None:
    """Return what an error means for the exit status; None if nobody foresaw it."""
    import httpx  # noqa: PLC0415 - see `online`

    from api.client import ClientError, JobNotSucceeded, MissingFormat, ServiceRefused  # noqa: PLC0415

    if isinstance(error, ServiceRefused):
        return _STATUSES.get(error.status, FAILED)
    meanings: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int], ...] = (
        (JobNotSucceeded, NOT_SUCCEEDED),
        (MissingFormat, MISSING),
        (TimeoutError, LATE),
        ((httpx.TransportError, httpx.InvalidURL), AWAY),
        ((ClientError, OSError), FAILED),
        (ValueError, USAGE),
    )
    return next((status for kinds, status in meanings if isinstance(error, kinds)), None)


def _words(error: Exception, url: str) -> str:
    import httpx  # noqa: PLC0415 - see `online`

    from api.client import ServiceRefused  # noqa: PLC0415

    if isinstance(error, ServiceRefused) and "code" in error.problem:
        return f"{error} ({error.problem['code']})"
    if isinstance(error, httpx.TransportError | httpx.InvalidURL):
        return f"{url} does not answer: {error or type(error).__name__}"
    return str(error)


def _say(text: str, status: int) -> int:
    print(f"duolora: {text}", file=sys.stderr)
    return status
