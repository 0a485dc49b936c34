"""What a file's header tells of it; broken and hostile files are `tests/duolora/lora/test_safe_file.py`'s as well."""

import json
import re

import pytest
import torch
from safetensors.torch import save

from api.errors import InvalidParameters
from api.loras.inspection import inspect
from api.loras.models import LoraFormat
from tests.api.loras.conftest import lora_file


def inspected(tmp_path, data):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(data)
    return inspect(path)


def refused(tmp_path, data):
    with pytest.raises(InvalidParameters) as caught:
        inspected(tmp_path, data)
    [error] = caught.value.errors
    assert (error.pointer, error.code) == ("/file", "invalid_lora")
    return error.detail


@pytest.mark.parametrize(
    ("stem", "down", "up", "form"),
    [
        ("unet.down_blocks.0.a.to_q", "lora_A", "lora_B", LoraFormat.DIFFUSERS),
        ("text_encoder_2.a.q_proj", "lora_A", "lora_B", LoraFormat.DIFFUSERS),
        ("lora_unet_down_blocks_0_a_to_q", "lora_down", "lora_up", LoraFormat.KOHYA),
        ("lora_te1_text_model_a", "lora_down", "lora_up", LoraFormat.KOHYA),
        ("base_model.model.down_blocks.0.a.to_q", "lora_A", "lora_B", LoraFormat.PEFT),
        ("mid_block.a.to_q", "lora_A.default", "lora_B.default", LoraFormat.PEFT),
        ("unet.a.processor.to_q_lora", "down", "up", LoraFormat.OTHER),
        ("lora_unet.a", "lora_down", "lora_up", LoraFormat.OTHER),
    ],
)
def test_the_format_is_known_by_its_keys(tmp_path, stem, down, up, form):
    found = inspected(tmp_path, lora_file(stem, down, up))
    assert (found.format, found.rank) == (form, 4)


@pytest.mark.parametrize(("metadata", "mock"), [({"duolora.engine": "mock"}, True), ({"engine": "mock"}, False)])
def test_a_file_that_the_mock_engine_wrote_is_known_by_its_metadata(tmp_path, metadata, mock):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(lora_file(**metadata))
    assert inspect(path).mock is mock


def test_the_rank_is_the_highest(tmp_path):
    tensors = {}
    for name, rank in (("a", 2), ("b", 16), ("c", 8)):
        tensors |= {f"unet.{name}.x.lora_A.weight": torch.ones(rank, 3)}
        tensors |= {f"unet.{name}.x.lora_B.weight": torch.ones(4, rank)}
    assert inspected(tmp_path, save(tensors)).rank == 16


def test_alphas_and_convolutions_belong_to_it(tmp_path):
    tensors = {
        "lora_unet_a.lora_down.weight": torch.ones(4, 3, 3, 3),
        "lora_unet_a.lora_up.weight": torch.ones(5, 4, 1, 1),
        "lora_unet_a.alpha": torch.tensor(4.0),
    }
    assert inspected(tmp_path, save(tensors)).format is LoraFormat.KOHYA


def sdxl_keys():
    """Three tensors for each of 2,000 layers, in keys as long as SDXL's longest; no number is there."""
    for layer in range(2000):
        stem = f"lora_unet_{layer:04}".ljust(110 - len(".lora_down.weight"), "x")
        for key, shape in (("lora_down.weight", [0, 1280]), ("lora_up.weight", [1280, 0]), ("alpha", [0])):
            yield f"{stem}.{key}", {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]}


def with_header(entries):
    words = json.dumps(entries, separators=(",", ":")).encode()
    return len(words).to_bytes(8, "little") + words


def test_a_header_has_room_for_every_layer_of_sdxl_and_more_words(tmp_path):
    metadata = {"__metadata__": {"ss_tag_frequency": "x" * 500_000}}
    # read to its end: without numbers the first layer has none of a LoRA's shapes
    assert "which no layer of a LoRA has" in refused(tmp_path, with_header(metadata | dict(sdxl_keys())))


def test_a_header_beyond_any_loras_is_refused_unparsed(tmp_path):
    data = with_header({"a": [[]] * (2**21 // 3)})
    detail = refused(tmp_path, data)
    assert f"a header of {len(data) - 8} bytes; no LoRA needs more than {2**21}" in detail
    assert "save it without" in detail


DOWN, UP = "unet.a.x.lora_A.weight", "unet.a.x.lora_B.weight"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "does not start with a header"),
        (b"PK\x03\x04" + b"\0" * 100, "Python pickle"),
        (b"\x80\x02}q\x00." + b"\0" * 100, "Python pickle"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "does not start with a header"),
        (lora_file()[:-1], "bytes, and"),
        (lora_file()[:20], "ends inside its header"),
        (lora_file() + b"more", "bytes, and"),
        (save({"a": torch.ones(2)}), "1 tensors are not part of a LoRA, for example a"),
        (save({"unet.a.alpha": torch.ones(1)}), "it holds no LoRA"),
        (save({DOWN: torch.ones(4, 3)}), "no matching up factor"),
        (save({DOWN: torch.ones(4, 3), UP: torch.ones(3, 5)}), "has rank 4 and .* has rank 5"),
        (save({DOWN: torch.ones(4), UP: torch.ones(3)}), "which no layer of a LoRA has"),
        (save({DOWN: torch.ones(0, 3), UP: torch.ones(3, 0)}), "which no layer of a LoRA has"),
        (save({"unet.a.hada_w1_a": torch.ones(4, 3)}), "LoHa"),
        (lora_file("transformer.a"), "cannot be used here"),
        (save({DOWN: torch.ones(4, 3, dtype=torch.int32), UP: torch.ones(3, 4)}), "is stored as I32"),
    ],
)
def test_what_is_no_lora_is_refused_with_the_reason(tmp_path, data, complaint):
    assert re.search(complaint, refused(tmp_path, data))
