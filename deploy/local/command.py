"""`duolora up` and `duolora demo`: the whole service on one machine, without Docker or root."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.data_folder import default_data_folder
from deploy.local.processes import LocalStackError, interrupted_by_signals

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_PORT = 8000
INTERRUPTED = 130
"""Exit status of a shell command that was interrupted."""

UP_TEXT = """\
Start Postgres, Valkey, an S3 server, the API, the dispatcher and workers, and keep them running until Ctrl-C.

Everything is kept in one folder: --data, or DUOLORA_DATA, or $XDG_DATA_HOME/duolora, which is ~/.local/share/duolora
unless set otherwise. In it: postgres/ (rows), objects/ (pictures and results), logs/ (one per process), secrets.json
(generated passwords and the API key, readable by you only) and, while it runs, environment (the servers' URLs and the
key, for `duolora jobs`, `keys` and your own tools: set -a; . DIR/environment). Remove the folder to start anew.

DATABASE_URL, REDIS_URL or S3_ENDPOINT (with S3_BUCKET, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY) in the environment
replace the embedded server. Run as root where user namespaces are blocked, Postgres runs as `nobody`, and its files go
to /var/lib/duolora when that user cannot enter the data folder.

Every NVIDIA GPU gets a worker of its own; CUDA_VISIBLE_DEVICES chooses among them. A machine without one gets one
worker, or as many as --workers says, which then share the cores.
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `up` and `demo` to the `duolora` command."""
    raw = argparse.RawDescriptionHelpFormatter
    up = commands.add_parser("up", help="run the service on this machine", description=UP_TEXT, formatter_class=raw)
    up.add_argument("--data", type=Path, metavar="DIR", help=f"where everything is kept (now: {_default_data_text()})")
    up.add_argument("--port", type=int, default=DEFAULT_PORT, help="of the API, on 127.0.0.1 (default %(default)s)")
    up.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="NAME=LOCATION",
        type=_base_model,
        help="offer a base model: a folder, a single-file checkpoint or a Hugging Face id; may be repeated, "
        "the first is the default of jobs that name none (default tiny=tiny)",
    )
    up.add_argument("--workers", type=int, metavar="N", help="how many (default: one on each GPU, at least one)")
    up.set_defaults(run=_up)
    demo = commands.add_parser(
        "demo",
        help="run one whole job on sample pictures",
        description="Start the service, run one job on the sample pictures over HTTP, put its files in a folder, stop.",
    )
    demo.add_argument("--data", type=Path, default=Path(".duolora/demo"), metavar="DIR", help="default %(default)s")
    demo.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="default %(default)s")
    demo.add_argument("--seed", type=int, help="other than the recipe's")
    demo.set_defaults(run=_demo)


def _default_data_text() -> str:
    """Where the data would go; every command builds this parser, so a missing home must not stop it."""
    try:
        return str(default_data_folder()).replace("%", "%%")
    except LocalStackError as error:
        return str(error)


def _up(arguments: argparse.Namespace) -> int:
    from deploy.local.stack import Stack  # noqa: PLC0415 - every `duolora` command loads this module; few need a database

    began = time.monotonic()

    def serve() -> None:
        environment = dict(os.environ)
        if arguments.base:
            environment["BASE_MODELS"] = json.dumps(dict(arguments.base))
        data: Path = arguments.data or default_data_folder()
        with Stack(data, environment=environment, port=arguments.port, workers=arguments.workers) as stack:
            print(f"DuoLoRA is up after {time.monotonic() - began:.1f} s. Ctrl-C stops it.\n")
            print(f"  console  {stack.api_url}/#key={stack.owner.api_key}")
            print(f"  API      {stack.api_url}  (described by /openapi.json)")
            print(f"  API key  {stack.owner.api_key}")
            print(f"  data     {stack.data}")
            print(f"  commands  set -a; . {stack.data}/environment; set +a; duolora jobs list")
            print(f"  webhooks are signed with {stack.owner.webhook_secret}\n", flush=True)
            stack.watch()

    return _guarded(serve, interrupted=0)


def _demo(arguments: argparse.Namespace) -> int:
    from deploy.local.demo import run_demo  # noqa: PLC0415 - see above

    return _guarded(
        lambda: run_demo(arguments.data, arguments.out, environment=os.environ, seed=arguments.seed),
        interrupted=INTERRUPTED,
    )


def _guarded(act: Callable[[], None], *, interrupted: int) -> int:
    """Run until the end or a signal; say on one line what went wrong. Returns the exit status."""
    _speak_directly_to_loopback()
    try:
        with interrupted_by_signals():
            act()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return interrupted
    except (LocalStackError, OSError) as error:
        print(f"duolora: {error}", file=sys.stderr)
        return 1
    return 0


def _speak_directly_to_loopback() -> None:
    """Keep a proxy of the environment, which pip may need, out of what the processes here say to each other."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost"]))


def _base_model(text: str) -> tuple[str, str]:
    """Split NAME=LOCATION; a location that exists becomes absolute, since services run in a folder of their own."""
    name, equals, location = text.partition("=")
    if not (name and equals and location):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LOCATION")
    path = Path(location).expanduser()
    return name, str(path.absolute()) if path.exists() else location
