"""What one GPU does with SDXL, beside its rivals: `python -m tests.benchmarks.gpu --out FOLDER [--only NAME,...]`.

Checks, then times, all in one run on one card with random weights of SDXL's shapes; no network is needed. Writes
gpu.json and gpu.md into the folder after every section; a report that lies there is gone on with, so that sections can
be measured one by one. `--small` runs everything in tiny sizes on the CPU, to see that the program works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from duolora.runtime import choose_runtime
from tests.benchmarks.gpu.report import OtherMachine, Report, this_machine
from tests.benchmarks.gpu.sections import SECTIONS, run_sections
from tests.benchmarks.gpu.workbench import FULL, TINY, Workbench


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for; return 1 if a section failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--small", action="store_true", help="tiny sizes on the CPU")
    wishes = parser.parse_args(arguments)
    names = [name for name in wishes.only.split(",") if name]
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        parser.error(f"no section is called {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    runtime = choose_runtime("cpu" if wishes.small else "auto")
    if runtime.device.type != "cuda" and not wishes.small:
        parser.error("torch sees no GPU here; --small runs the program on the CPU")
    try:
        report = Report.in_folder(wishes.out, this_machine(small=wishes.small))
    except OtherMachine as error:
        parser.error(f"{error}; give another folder, or take that report away")
    with tempfile.TemporaryDirectory(prefix="duolora-gpu-") as pictures:
        bench = Workbench(TINY if wishes.small else FULL, runtime, Path(pictures))
        failed = run_sections(bench, report, names)
    sys.stdout.write(f"written: {wishes.out / 'gpu.md'}{'; failed: ' + ', '.join(failed) if failed else ''}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
