"""Writes trained (or untrained) components as one diffusers folder of float16 safetensors."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from duolora.tiny.architecture import Components, build_components, write_model_index, write_scheduler
from duolora.tiny.captions import vocabulary_words
from duolora.tiny.checkpoint import load_pieces
from duolora.tiny.tokenizer import build_vocabulary, learn_merges, write_tokenizer

log = logging.getLogger(__name__)


def assemble(components: Components, folder: Path) -> int:
    """Write `folder` afresh from `components` (converted to float16 in place) and return its size in bytes.

    The tokenizer is rebuilt from the captions; its vocabulary must be the one the text encoders were built for.
    """
    shutil.rmtree(folder, ignore_errors=True)
    vocabulary_size = write_tokenizer(folder / "tokenizer")
    expected = components.text_encoder.config.vocab_size
    if vocabulary_size != expected:
        raise ValueError(f"the captions give {vocabulary_size} tokens, the text encoders were built for {expected}")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    components.vae.half().save_pretrained(folder / "vae")
    components.unet.half().save_pretrained(folder / "unet")
    components.text_encoder.half().save_pretrained(folder / "text_encoder")
    components.text_encoder_2.half().save_pretrained(folder / "text_encoder_2")
    write_scheduler(folder / "scheduler")
    write_model_index(folder)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def load_trained(vae: Path, export: Path) -> Components:
    """Return the trained components: `vae` is pretrain_vae's folder DIR/vae, `export` is pretrain's DIR/export."""
    tensors, _ = load_pieces(export)
    vocabulary_size = tensors["text_encoder.embeddings.token_embedding.weight"].shape[0]
    built = build_components(vocabulary_size)
    for module_name in ("unet", "text_encoder", "text_encoder_2"):
        prefix = f"{module_name}."
        weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        getattr(built, module_name).load_state_dict(weights)
    trained_vae = AutoencoderKL.from_pretrained(vae)
    # Into a fresh module: a loaded one would write the folder it came from into the config.
    built.vae.load_state_dict(trained_vae.state_dict())
    built.vae.register_to_config(scaling_factor=trained_vae.config.scaling_factor)
    return Components(built.vae, built.unet, built.text_encoder, built.text_encoder_2)


def main() -> None:
    """Write the base: trained (`--vae` and `--export`), or untrained with every shape of the trained one."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--export", type=Path)
    arguments = parser.parse_args()
    if arguments.vae is not None and arguments.export is not None:
        components = load_trained(arguments.vae, arguments.export)
    else:
        torch.manual_seed(0)
        components = build_components(len(build_vocabulary(learn_merges(vocabulary_words()))))
    log.info("%d bytes in %s", assemble(components, arguments.out), arguments.out)


if __name__ == "__main__":
    main()
