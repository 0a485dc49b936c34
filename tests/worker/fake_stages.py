"""The real engine process around stages that need no torch: run as `python -m tests.worker.fake_stages`.

The stage's behaviour is the recipe's name in its configuration.
"""

from __future__ import annotations

import logging
import os
import sys
import types

from duolora.errors import InvalidBase, InvalidImage
from duolora.events import Observer, Progress, advance
from worker.engine.protocol import Output, StageRequest


class BaseModels:
    device = "imaginary"

    def warm(self, base: str) -> None:
        if base == "broken":
            raise InvalidBase("no such folder")
        if base == "pointer":
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "as a library fails")

    def pairs(self, _base: str) -> bool:
        return True

    def shares_passes(self, _base: str) -> bool:
        return True


def run_stage(request: StageRequest, models: BaseModels, observer: Observer) -> list[Output]:
    [stage] = request.members
    recipe = stage.config.recipe
    print("a library prints")  # noqa: T201
    os.system("echo so does a child of it")  # noqa: S605, S607 - a constant
    if recipe == "speaking":
        logging.getLogger("worker.engine").info("a stage speaks")
    if recipe == "picture":
        raise InvalidImage("picture 0 is empty")
    if recipe == "bug":
        raise KeyError("secret detail")
    step = 0
    while step < 1_000 or recipe == "endless":
        step += 1
        advance(observer, Progress(step=step, total=1_000, loss=1.0 / step, note="training"))
    (stage.outputs_dir / "x.json").write_text("{}")
    return [Output(name="x", filename="x.json", content_type="application/json")]


if __name__ == "__main__":
    stages = types.ModuleType("worker.engine.stages")
    stages.BaseModels = BaseModels
    stages.run_stage = run_stage
    sys.modules["worker.engine.stages"] = stages
    from worker.engine.__main__ import main

    main()
