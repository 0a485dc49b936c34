"""`python -m tests.chaos`: rounds of jobs and faults, each on a fresh installation, and a report.

Every round's record is kept as soon as it is done: the same command goes on where it was broken off. Once all are done
and the report is written, the records go, and the next run begins anew. Logs and data of a round that failed stay.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from deploy.local.processes import interrupted_by_signals
from tests.chaos.campaign import Round, run_round
from tests.chaos.faults import deal
from tests.chaos.report import add_up, passed, proves, write

JOBS_A_ROUND = 15
ROUND_LIMIT_S = 540.0
SPARE_ROUNDS = 2
"""Added where the time of the others did not do."""
HERE = Path(__file__).parent


def main() -> int:
    """Run what is missing, write the report, say how it went."""
    arguments = _arguments()
    company = f"-{arguments.jobs_at_once}" if arguments.jobs_at_once > 1 else ""
    work = arguments.work.absolute() / f"{arguments.seed}-{arguments.jobs}-{arguments.faults}{company}"
    work.mkdir(parents=True, exist_ok=True)
    rounds = max(1, arguments.jobs // JOBS_A_ROUND)
    records: list[dict[str, Any]] = []
    with interrupted_by_signals():
        while len(records) < rounds or (_lacks(arguments, records) and len(records) < rounds + SPARE_ROUNDS):
            number = len(records)
            kept = work / f"round-{number}.json"
            if not kept.exists():
                sys.stderr.write(f"round {number + 1} of {rounds}\n")
                record = run_round(_plan(arguments, number, rounds, records), work / f"round-{number}")
                partial = kept.with_suffix(".partial")
                partial.write_text(json.dumps(record | {"commit": _commit()}, indent=1, default=str))
                partial.replace(kept)
            records.append(json.loads(kept.read_text()))
            write(add_up(arguments.seed, records), work)
    report = add_up(arguments.seed, records)
    write(report, arguments.out)
    for kept in work.glob("round-*.json"):
        kept.unlink()
    short = {name: value for name, value in report.items() if not isinstance(value, dict | list)}
    sys.stdout.write("\n".join([json.dumps(short, indent=1), *report["findings"], ""]))
    return 0 if passed(report) and proves(report) and not _lacks(arguments, records) else 1


def _lacks(arguments: argparse.Namespace, records: list[dict[str, Any]]) -> bool:
    """Whether fewer faults were done, or fewer jobs taken, than was asked for: a busy machine ends a round early."""
    faults, jobs = (sum(record[name] for record in records) for name in ("faults", "jobs"))
    return faults < arguments.faults or jobs < arguments.jobs


def _plan(arguments: argparse.Namespace, number: int, rounds: int, records: list[dict]) -> Round:
    """What this round owes to the whole."""
    done: Counter[str] = Counter()
    for record in records:
        done.update(record["by_fault"])
    left = max(1, rounds - number)
    seed = f"{arguments.seed}:{number}"
    return Round(
        seed=seed,
        jobs=max(1, -(-(arguments.jobs - sum(record["jobs"] for record in records)) // left)),
        faults=max(0, -(-(arguments.faults - done.total()) // left)),
        deck=deal(random.Random(seed), arguments.faults, done),
        limit_s=ROUND_LIMIT_S,
        environment={"WORKER_PAIRS": "true" if (number + arguments.seed) % 2 else "false"},
        jobs_at_once=arguments.jobs_at_once,
    )


def _commit() -> str:
    """What was tried."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1, help="decides jobs, faults and their order (default %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=60, help="at least so many (default %(default)s)")
    parser.add_argument("--faults", type=int, default=200, help="so many (default %(default)s)")
    parser.add_argument(
        "--jobs-at-once", type=int, default=1, help="WORKER_JOBS_AT_ONCE of all workers (default %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder of REPORT.md and report.json (default: beside this)"
    )
    parser.add_argument("--work", type=Path, default=Path(".duolora/chaos"), help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
