"""LoRAs for the embedded base that nobody has trained: small, the same for a seed, and in the library of every account.

What is merged or drawn with them is as real as with any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
from safetensors.numpy import load_file, save

import duolora.tiny

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.callers import Account

RANK = 2
SCALE = 0.02
LAYERS = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
SIDES = ("content", "style")


def lora(seed: int) -> bytes:
    """A LoRA on the attention of the embedded base's U-Net, in the keys of diffusers."""
    rng = np.random.default_rng(seed)
    base = load_file(Path(duolora.tiny.__file__).parent / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    factors = {}
    for name, weight in sorted(base.items()):
        if name.endswith(LAYERS):
            stem, (outputs, inputs) = name.removesuffix(".weight"), weight.shape
            factors[f"unet.{stem}.lora_A.weight"] = SCALE * rng.standard_normal((RANK, inputs), np.float32)
            factors[f"unet.{stem}.lora_B.weight"] = SCALE * rng.standard_normal((outputs, RANK), np.float32)
    return save(factors)


def stock(api_url: str, accounts: Sequence[Account]) -> dict[str, dict[str, str]]:
    """Send both sides into every account's library; returns their ids, by the account's name and the side."""
    files = {side: lora(seed) for seed, side in enumerate(SIDES)}
    return {account.name: {side: _send(api_url, account, side, files[side]) for side in SIDES} for account in accounts}


def _send(api_url: str, account: Account, side: str, data: bytes) -> str:
    answer = httpx.post(
        f"{api_url}/loras",
        files={"file": (f"{side}.safetensors", data)},
        data={"role": side, "base_model": "tiny", "trigger": f"a {side}"},
        headers={"Authorization": f"Bearer {account.key}"},
        timeout=30,
    )
    answer.raise_for_status()
    made: str = answer.json()["id"]
    return made
