"""Writing a LoRA as ordinary files: diffusers/PEFT keys and kohya keys, which give equal weight changes.

The scale is folded into the factors: where all layers have one rank, alpha = rank in every layer of both files and a
reader that drops alpha is right too. The diffusers file keeps to that when ranks differ; the kohya file cannot (see
`write_kohya`).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from duolora.lora.keys import kohya_key
from duolora.lora.read import PEFT_METADATA_KEY, tensor_bytes
from duolora.lora.weights import LoraWeights

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

DIFFUSERS_IMPLEMENTATION = "https://github.com/huggingface/diffusers"
STABILITY_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"


def write_diffusers(weights: LoraWeights, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a file that `pipe.load_lora_weights` of diffusers reads, ranks per layer included."""
    folded = weights.folded().to(dtype)
    tensors: dict[str, Tensor] = {}
    for name, layer in folded.layers.items():
        tensors[f"{name}.lora_A.weight"] = layer.down_RI
        tensors[f"{name}.lora_B.weight"] = layer.up_OR
    metadata = _model_spec(folded, tensors, DIFFUSERS_IMPLEMENTATION)
    metadata[PEFT_METADATA_KEY] = json.dumps(_peft_config(folded), sort_keys=True)
    save_file(tensors, path, metadata=metadata)


def write_kohya(weights: LoraWeights, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a file that kohya's scripts, ComfyUI and diffusers' own conversion read.

    All layers carry one alpha, the smallest rank. The conversion of diffusers (0.42.1 and before) loses the alphas of
    attention layers that differ from the most frequent one: it files them under names that match no module. With one
    alpha nothing can be lost; the smallest rank, because factors then only grow, and float16 rounds no small ones away.
    """
    alpha = float(min(layer.rank for layer in weights.layers.values()))
    folded = LoraWeights(
        {name: layer.with_alpha(alpha) for name, layer in weights.layers.items()}, weights.metadata
    ).to(dtype)
    tensors: dict[str, Tensor] = {}
    for name, layer in folded.layers.items():
        key = kohya_key(name)
        tensors[f"{key}.lora_down.weight"] = layer.down_RI
        tensors[f"{key}.lora_up.weight"] = layer.up_OR
        tensors[f"{key}.alpha"] = torch.tensor(layer.alpha, dtype=dtype)
    rank = str(folded.common_rank) if folded.has_one_rank else "Dynamic"
    metadata = _model_spec(folded, tensors, STABILITY_IMPLEMENTATION) | {
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": "{}",
    }
    save_file(tensors, path, metadata=metadata)


def _model_spec(weights: LoraWeights, tensors: dict[str, Tensor], implementation: str) -> dict[str, str]:
    """Header entries of ModelSpec 1.0.1; the LoRA's own metadata (title, trigger, provenance) comes on top."""
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": implementation,
        "modelspec.prediction_type": "epsilon",
        "modelspec.title": "DuoLoRA",
        "modelspec.hash_sha256": "0x" + hashlib.sha256(tensor_bytes(tensors)).hexdigest(),
        **{key: value for key, value in weights.metadata.items() if key.startswith(("modelspec.", "duolora."))},
    }


def _peft_config(weights: LoraWeights) -> dict[str, Any]:
    """Return PEFT's configuration of each component, prefixed by its name as diffusers stores it."""
    config: dict[str, Any] = {}
    components = sorted({name.partition(".")[0] for name in weights.layers})
    for component in components:
        prefix = component + "."
        ranks = {
            name.removeprefix(prefix): layer.rank for name, layer in weights.layers.items() if name.startswith(prefix)
        }
        common = weights.common_rank
        odd = {name: rank for name, rank in ranks.items() if rank != common}
        config |= {
            f"{prefix}peft_type": "LORA",
            f"{prefix}r": common,
            f"{prefix}lora_alpha": common,
            f"{prefix}rank_pattern": odd,
            f"{prefix}alpha_pattern": odd,
            f"{prefix}target_modules": sorted(ranks),
        }
    return config
