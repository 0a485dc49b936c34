"""Files that look like a LoRA and are none that can be merged: how to tell them, and what to tell their owner."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from collections.abc import Iterable

_AS_LORA = "train it as a plain LoRA, or extract a plain LoRA from the two models with the program that made it"

OTHER_ADAPTERS = (
    (re.compile(r"\.hada_[wt]\d"), "LoHa (a Hadamard product, not a sum of ranks)", _AS_LORA),
    (re.compile(r"\.lokr_[wt]\d"), "LoKr (a Kronecker product, not a sum of ranks)", _AS_LORA),
    (
        re.compile(r"\.(dora_scale|lora_magnitude_vector|weight_m)\b"),
        "DoRA (its magnitudes depend on the whole merged weight)",
        "train it without DoRA, or extract a plain LoRA from the merged model",
    ),
    (re.compile(r"\.(glora_\w+|[ab][12]\.weight$)"), "GLoRA (it multiplies the base's weight)", _AS_LORA),
    (re.compile(r"\.(oft_|boft_|oft_blocks|oft_diag)"), "OFT (it rotates the base's weight)", _AS_LORA),
    (re.compile(r"\.(ia3_\w+|on_input)"), "(IA)^3 (it scales activations)", _AS_LORA),
    (re.compile(r"\.vera_lambda|\.fourierft_|\.hra_|\.miss_|\.shira_|\.bone_"), "another kind of adapter", _AS_LORA),
    (
        re.compile(r"\.lora_mid\b|\.lora_C\b"),
        "a LoCon with a Tucker decomposition",
        "train it without use_tucker (use_cp), or resize it to plain factors",
    ),
    (re.compile(r"\.(diff|diff_b|w_norm|b_norm)$"), "a full change of a weight, not a product of factors", _AS_LORA),
    (re.compile(r"\.lora_(A|B|up|down)\.bias$|\.lora_bias"), "a LoRA with biases", "train it without lora_bias"),
    (
        re.compile(r"^bundle_emb\b|^emb_params$|\.string_to_param|^clip_[lg]$"),
        "a bundled text embedding, which no merge can keep",
        "export the LoRA without its embeddings",
    ),
    (re.compile(r"^(lora_)?control|\.lora_up_\w+\.|\.lora_embedding_"), "another kind of LoRA", _AS_LORA),
)
"""(what its keys look like, what it is, what helps)."""

OTHER_FAMILIES = (
    (re.compile(r"(double|single)_(transformer_)?blocks"), "Flux"),
    (re.compile(r"joint_blocks|joint_transformer_blocks|^lora_te3|^text_encoder_3"), "SD 3"),
    (re.compile(r"^lora_prior_unet|down_blocks[._]\d[._]\d[._]"), "Stable Cascade"),
    (re.compile(r"^(lora_)?transformer[._]|diffusion_model[._](blocks|layers)"), "a diffusion transformer"),
    (re.compile(r"^(lora_llm|text_encoder_?\d?\.(model|shared|encoder\.block))"), "a model with a language model"),
)
"""(what its keys look like, family) for families without a U-Net of ours."""


def refuse_other_adapters(keys: Iterable[str]) -> None:
    """Refuse files whose adapter is not a plain low-rank sum.

    Raises:
        InvalidLora: with the first such key, what it belongs to and what helps.
    """
    for key in sorted(keys):
        for looks, kind, remedy in OTHER_ADAPTERS:
            if looks.search(key):
                raise InvalidLora(f"{key} belongs to {kind}, which cannot be merged by ranks; {remedy}")


def refuse_other_families(stems: Iterable[str]) -> None:
    """Refuse files made for a family without a U-Net of ours.

    Raises:
        InvalidLora: with the first such key and the family.
    """
    for stem in sorted(stems):
        for looks, family in OTHER_FAMILIES:
            if looks.search(stem):
                raise InvalidLora(f"{stem} is of a LoRA for {family}, whose base cannot be used here; use another LoRA")
