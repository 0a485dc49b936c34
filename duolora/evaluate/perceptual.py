"""DINO, CLIP and CSD, as the paper measures with them: from local folders or hub ids, through transformers.

- DINO (Caron et al. 2021): the class token of a ViT, `facebook/dino-vits16`; likeness of subjects.
- CLIP-I and CLIP-T (Radford et al. 2021): projected embeddings of pictures and texts, `openai/clip-vit-base-patch32`.
- CSD (Somepalli et al. 2024): a CLIP vision tower with a style head; likeness of styles. Accepted are a safetensors
  file, a folder with `model.safetensors`, or a hub id that has one, with the keys of the published checkpoint:
  `backbone.*` under OpenAI's names (`backbone.conv1.weight`, `backbone.transformer.resblocks.0...`), and
  `last_layer_style` (width, embedding), with or without `module.` in front. All sizes are read off the shapes.

Every embedding has unit norm, so a product is a cosine. Only safetensors are read.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from duolora.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_HEAD_WIDTH = 64
"""Width of an attention head in every CLIP."""
BATCH = 32

# Legend: N pictures or texts, S side of the model's input, E width of an embedding.


class PictureEmbedder(Protocol):
    """Turns pictures into unit embeddings."""

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit embeddings (N,E) on the CPU."""


class Dino:
    """A ViT trained by self-distillation; the class token of its last layer."""

    def __init__(self, location: str, device: torch.device) -> None:
        from transformers import ViTModel  # noqa: PLC0415 - heavy

        self._model = _pretrained(ViTModel, "--dino", location, device, add_pooling_layer=False)
        self._device = device

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit embeddings (N,E)."""
        side = self._model.config.image_size
        return _in_batches(
            prepare(pictures, side, IMAGENET_MEAN, IMAGENET_DEVIATION),
            lambda rgb_B3SS: self._model(rgb_B3SS.to(self._device)).last_hidden_state[:, 0],
        )


class Clip:
    """CLIP's two towers."""

    def __init__(self, location: str, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPTokenizer  # noqa: PLC0415 - heavy

        self._model = _pretrained(CLIPModel, "--clip", location, device)
        with loading("--clip", location, "its folder needs the tokenizer as well (vocab.json, merges.txt)"):
            self._tokenizer = CLIPTokenizer.from_pretrained(location)
        self._device = device

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit embeddings (N,E)."""
        side = self._model.config.vision_config.image_size

        def embed(rgb_B3SS: Tensor) -> Tensor:
            pooled: Tensor = self._model.vision_model(rgb_B3SS.to(self._device)).pooler_output
            projected: Tensor = self._model.visual_projection(pooled)
            return projected

        return _in_batches(prepare(pictures, side, CLIP_MEAN, CLIP_DEVIATION), embed)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit embeddings (N,E)."""
        longest = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self._device)
        pooled_NE = self._model.text_projection(self._model.text_model(**tokens).pooler_output)
        return functional.normalize(pooled_NE.float(), dim=1).cpu()


class Csd:
    """The style head of CSD on its vision tower."""

    def __init__(self, location: str, device: torch.device) -> None:
        tensors = {name.removeprefix("module."): tensor.float() for name, tensor in _read_csd(location).items()}
        if "last_layer_style" not in tensors or "backbone.conv1.weight" not in tensors:
            raise InvalidConfig(f"--csd {location} has no last_layer_style or no backbone.conv1.weight; {CSD_REMEDY}")
        self._style_DE = tensors["last_layer_style"].to(device)
        self._tower = csd_tower(tensors).to(device).eval().requires_grad_(False)
        self._device = device

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit style embeddings (N,E)."""
        side = self._tower.config.image_size
        return _in_batches(
            prepare(pictures, side, CLIP_MEAN, CLIP_DEVIATION),
            lambda rgb_B3SS: self._tower(rgb_B3SS.to(self._device)).pooler_output @ self._style_DE,
        )


CSD_REMEDY = (
    "give a safetensors file or a folder with model.safetensors that has the keys of the published CSD checkpoint "
    "(backbone.*, last_layer_style), for example a copy of yuxi-liu-wired/CSD"
)

_OF_TOWER = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
}
_PREFIXES = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
_OF_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_BLOCK_KEY = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)$")


@contextmanager
def loading(option: str, location: str, remedy: str) -> Iterator[None]:
    """Turn whatever loading raises into one error that names the option and what can be done."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidConfig(f"{option} {location} cannot be loaded ({first_line}); {remedy}") from error


def _pretrained(kind: Any, option: str, location: str, device: torch.device, **settings: bool) -> Any:  # noqa: ANN401
    """Load a model of transformers, from safetensors only, for judging."""
    remedy = (
        f"give the folder of a copy with {option} FOLDER (config.json and model.safetensors), "
        "or run once where the model hub can be reached"
    )
    with loading(option, location, remedy):
        model = kind.from_pretrained(location, use_safetensors=True, **settings)
    return model.to(device).eval().requires_grad_(False)


def _read_csd(location: str) -> dict[str, Tensor]:
    """Read the tensors of CSD from a file, a folder or the hub."""
    path = Path(location)
    with loading("--csd", location, CSD_REMEDY):
        if path.is_dir():
            path = path / "model.safetensors"
        elif not path.is_file():
            from huggingface_hub import hf_hub_download  # noqa: PLC0415 - heavy

            path = Path(hf_hub_download(location, "model.safetensors"))
        return load_file(path)


def csd_tower(tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - transformers has no types
    """Build the vision tower from tensors under OpenAI's names, `backbone.` in front.

    Raises:
        InvalidConfig: the tensors are not those of a CLIP vision tower; the message names one that is odd.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel  # noqa: PLC0415 - heavy

    names = {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    width, _, patch, _ = names["conv1.weight"].shape
    blocks = [match for match in map(_BLOCK_KEY.match, names) if match]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=1 + max((int(match[1]) for match in blocks), default=0),
        num_attention_heads=max(1, width // CLIP_HEAD_WIDTH),
        image_size=round((names["positional_embedding"].shape[0] - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )
    translated: dict[str, Tensor] = {}
    for name, tensor in names.items():
        translated |= _translate(name, tensor)
    model = CLIPVisionModel(config)
    tower = getattr(model, "vision_model", model)  # transformers 5 dropped the level
    missing, unexpected = tower.load_state_dict(translated, strict=False)
    odd = [name for name in (*missing, *unexpected) if not name.endswith("position_ids")]
    if odd:
        raise InvalidConfig(f"--csd: {odd[0]} does not fit a CLIP vision tower; {CSD_REMEDY}")
    return model


def _translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor of OpenAI's layout under the names of transformers; q, k and v come apart."""
    if name in _OF_TOWER:
        return {_OF_TOWER[name]: tensor}
    stem, _, kind = name.rpartition(".")
    if stem in _PREFIXES:
        return {f"{_PREFIXES[stem]}.{kind}": tensor}
    match = _BLOCK_KEY.match(name)
    if match is None:
        return {name: tensor}
    block, part, kind = f"encoder.layers.{match[1]}", match[2], match[3]
    if part == "attn.in_proj":
        thirds = tensor.chunk(3)
        return {f"{block}.self_attn.{letter}_proj.{kind}": third for letter, third in zip("qkv", thirds, strict=True)}
    return {f"{block}.{_OF_BLOCK.get(part, part)}.{kind}": tensor}


def prepare(
    pictures: Sequence[Image.Image], side: int, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Tensor:
    """Return pictures as a model wants them (N,3,S,S): short side to S by bicubic, central square, normalised."""
    squares = []
    for picture in pictures:
        scale = side / min(picture.size)
        size = (max(side, round(picture.width * scale)), max(side, round(picture.height * scale)))
        resized = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        squares.append(np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32) / 255)
    rgb_N3SS = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    return (rgb_N3SS - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


def _in_batches(rgb_N3SS: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Embed in batches and scale to unit norm; on the CPU."""
    parts = [functional.normalize(embed(batch).float(), dim=1).cpu() for batch in rgb_N3SS.split(BATCH)]
    return torch.cat(parts)
