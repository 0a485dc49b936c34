"""Which GPUs this machine has, and how workers share them: each engine process sees one card, or a share of the cores.

Without torch: the driver's own command is asked.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from deploy.local.processes import LocalStackError
from worker.settings import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICE = "DUOLORA_DEVICE"
THREADS = "ENGINE_THREADS"
ASK = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")
ASK_TIMEOUT_S = 30.0


def cards(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that workers may use, as CUDA_VISIBLE_DEVICES names them; none where the engine is to use none.

    The variable is believed where it is set. Where it is not, the driver is asked; a machine without an NVIDIA driver,
    or with one that does not answer, has no cards.
    """
    device = environment.get(DEVICE, "auto")
    if not device.startswith(("auto", "cuda")):
        return []
    if VISIBLE in environment:
        return [name for name in (part.strip() for part in environment[VISIBLE].split(",")) if name not in {"", "-1"}]
    try:
        asked = subprocess.run(
            ASK, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True, env=dict(environment)
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return asked.stdout.split()


def worker_environments(
    environment: Mapping[str, str], found: Sequence[str], workers: int | None = None
) -> list[dict[str, str]]:
    """Return what each worker's environment has beside the common one.

    Args:
        environment: the common one; ENGINE_THREADS in it is kept.
        found: the cards; workers take them in turn, so that more workers than cards share these.
        workers: how many; None for one on each card, or one where there is no card.

    Raises:
        LocalStackError: there would be no worker, or DUOLORA_DEVICE names a single card for several.
    """
    count = max(1, len(found)) if workers is None else workers
    if count < 1:
        raise LocalStackError("--workers must be 1 or more")
    if found and count > 1 and ":" in environment.get(DEVICE, ""):
        raise LocalStackError(f"{DEVICE} names one card; take it away, or choose cards by {VISIBLE}")
    own: list[dict[str, str]] = [{} for _ in range(count)]
    for index, settings in enumerate(own):
        if found and (count > 1 or len(found) > 1):
            settings[VISIBLE] = found[index % len(found)]
        if count > 1 and THREADS not in environment:
            settings[THREADS] = str(max(1, (usable_cores() - 1) // count))
    return own
