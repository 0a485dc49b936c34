"""Writing a LoRA as ordinary files: diffusers/PEFT keys and kohya keys, which give equal weight changes.

The scale is folded into the factors: where all layers have one rank, alpha = rank in every layer of both files and a
reader that drops alpha is right too. The diffusers file keeps to that when ranks differ; the kohya file cannot (see
`write_kohya`).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from duolora.errors import InvalidLora
from duolora.families.sdxl import SDXL
from duolora.lora.keys import kohya_key
from duolora.lora.peft_config import PEFT_METADATA_KEY, peft_config
from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from duolora.families.family import Family

DIFFUSERS_IMPLEMENTATION = "https://github.com/huggingface/diffusers"
STABILITY_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"


def write_diffusers(
    weights: LoraWeights, path: Path, dtype: torch.dtype = torch.float16, *, family: Family = SDXL
) -> None:
    """Write a file that `pipe.load_lora_weights` of diffusers reads, ranks per layer included.

    Raises:
        InvalidLora: a number does not fit the dtype.
    """
    folded = _rounded(weights.folded(), dtype)
    tensors: dict[str, Tensor] = {}
    for name, layer in folded.layers.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = _file_factors(layer)
    metadata = _model_spec(folded, tensors, family, DIFFUSERS_IMPLEMENTATION)
    metadata[PEFT_METADATA_KEY] = json.dumps(peft_config(folded), sort_keys=True)
    save_file(tensors, path, metadata=metadata)


def write_kohya(weights: LoraWeights, path: Path, dtype: torch.dtype = torch.float16, *, family: Family = SDXL) -> None:
    """Write a file that kohya's scripts, ComfyUI and diffusers' own conversion read.

    All layers carry one alpha, the smallest rank. The conversion of diffusers (0.42.1 and before) loses the alphas of
    attention layers that differ from the most frequent one: it files them under names that match no module. With one
    alpha nothing can be lost; the smallest rank, because factors then only grow, and float16 rounds no small ones away.

    Raises:
        InvalidLora: a number does not fit the dtype, or the family has no such component.
    """
    alpha = float(min(layer.rank for layer in weights.layers.values()))
    folded = _rounded(
        LoraWeights({name: layer.with_alpha(alpha) for name, layer in weights.layers.items()}, weights.metadata), dtype
    )
    tensors: dict[str, Tensor] = {}
    for name, layer in folded.layers.items():
        key = kohya_key(name, family)
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = _file_factors(layer)
        tensors[f"{key}.alpha"] = torch.tensor(layer.alpha, dtype=dtype)
    rank = str(folded.common_rank) if folded.has_one_rank else "Dynamic"
    metadata = _model_spec(folded, tensors, family, STABILITY_IMPLEMENTATION) | {
        "ss_v2": "False",
        "ss_base_model_version": family.kohya_base_version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": _network_args(folded),
    }
    save_file(tensors, path, metadata=metadata)


def _rounded(weights: LoraWeights, dtype: torch.dtype) -> LoraWeights:
    """Return the LoRA in the dtype of a file; refuse numbers that would become infinite."""
    balanced = {name: layer.balanced() for name, layer in weights.layers.items()}
    rounded = LoraWeights(balanced, weights.metadata).to(dtype)
    for name, layer in rounded.layers.items():
        if not bool(layer.down_RI.isfinite().all() and layer.up_OR.isfinite().all()):
            raise InvalidLora(f"{name} holds numbers that do not fit {dtype}; write it in float32")
    return rounded


def _file_factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """Return down and up as a file holds them."""
    down, up = layer.file_factors()
    return down.contiguous(), up.contiguous()


def _network_args(weights: LoraWeights) -> str:
    """Return kohya's arguments of the network; only convolutions need one."""
    ranks = {layer.rank for layer in weights.layers.values() if layer.kernel not in (None, (1, 1))}
    if not ranks:
        return "{}"
    rank = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    return json.dumps({"conv_dim": rank, "conv_alpha": rank})


def _model_spec(
    weights: LoraWeights, tensors: Mapping[str, Tensor], family: Family, implementation: str
) -> dict[str, str]:
    """Header entries of ModelSpec 1.0.1; the LoRA's own metadata (title, trigger, provenance) comes on top."""
    own = {key: value for key, value in weights.metadata.items() if key.startswith(("modelspec.", "duolora."))}
    return {
        "modelspec.title": "DuoLoRA",
        **own,
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": implementation,
        "modelspec.prediction_type": "epsilon",
        "modelspec.hash_sha256": "0x" + hashlib.sha256(tensor_bytes(tensors)).hexdigest(),
    }


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Concatenate the raw bytes of tensors in key order (ModelSpec 1.0.1 hashes exactly these)."""
    return b"".join(
        tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for key in sorted(tensors)
    )
