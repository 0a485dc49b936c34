"""A stranger's bytes: whatever they are, reading them ends soon, in tensors or in InvalidLora."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from duolora.errors import InvalidLora
from duolora.families.sdxl import SDXL
from duolora.lora.base_layers import BaseLayers
from duolora.lora.header import MAX_HEADER_BYTES, MAX_TENSORS
from duolora.lora.read import from_state_dict, read_lora
from duolora.lora.safe_file import read_tensors

if TYPE_CHECKING:
    from pathlib import Path

VALID = save({"unet.a.lora_A.weight": torch.ones(2, 3), "unet.a.lora_B.weight": torch.ones(4, 2)})
BASE = BaseLayers(SDXL, {"unet.a": (4, 3)})


def with_header(header: Any, body: bytes = b"") -> bytes:
    words = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(words).to_bytes(8, "little") + words + body


def refused(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(InvalidLora) as caught:
        read_lora(path, BASE)
    assert time.monotonic() - started < 5
    return str(caught.value)


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        with_header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"\0" * 12),  # overlapping
        with_header({"a": entry(0, 8, [2])}, b"\0" * 4),  # beyond the end
        with_header({"a": entry(8, 0, [2])}, b"\0" * 8),  # backwards
        with_header({"a": entry(0, 4, [2])}, b"\0" * 4),  # the shape needs more
        with_header({"a": entry(0, 8, [2])}, b"\0" * 16),  # bytes that nobody owns
        with_header({"a": entry(0, 2**63, [2**61])}),
        with_header({"a": entry(0, 0, [2**62, 2**62, 2**62])}),  # the product overflows
        with_header({"a": entry(0, 8, [2], "F1000")}, b"\0" * 8),
        with_header({"a": {"dtype": "F32"}}),
        with_header({"a": 1}),
        with_header({"__metadata__": {"a": 1}}),
        with_header(b"{"),
        with_header(b"{" * 100_000),
        with_header(b"{" + b'"a":' + b"[" * 100_000),
        with_header(b"{\xff\xfe}"),
        b"",
        b"\0" * 7,
        b"\0" * 100,
        b"version https://git-lfs.github.com/spec/v1\n",
        b"<!DOCTYPE html><html></html>",
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    assert "lora.safetensors" in refused(tmp_path, content)


def test_header_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    assert "ends inside its header" in refused(tmp_path, (2**63).to_bytes(8, "little") + b"{" + b" " * 100)


def test_header_larger_than_any_loras_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    with path.open("wb") as file:  # sparse: a gigabyte that is not there
        file.write((2**30).to_bytes(8, "little") + b"{")
        file.truncate(2**30 + 8)

    started = time.monotonic()
    with pytest.raises(InvalidLora, match=f"header of {2**30} bytes"):
        read_tensors(path)
    assert time.monotonic() - started < 0.5


def test_as_many_keys_as_a_header_holds_cost_little(tmp_path: Path) -> None:
    one = '"%06d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    count = (MAX_HEADER_BYTES - 100) // len(one % 0)
    words = "{" + "".join(one % index for index in range(count)).rstrip(",") + "}"
    assert MAX_TENSORS < count < 200_000

    assert f"holds {count} tensors" in refused(tmp_path, with_header(words.encode()))


@pytest.mark.parametrize("key", ["a" * 1_000_000, "unet.a\nduolora: all is well", "unet.a\x1b[2J"])
def test_keys_that_would_spoil_messages_are_refused_in_short(tmp_path: Path, key: str) -> None:
    message = refused(tmp_path, save({key: torch.ones(2, 3)}))

    assert "a key that no LoRA has" in message
    assert len(message) < 200
    assert message.isprintable()


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95"])
def test_pickles_are_named_so(tmp_path: Path, start: bytes) -> None:
    message = refused(tmp_path, start + b"\0" * 100)

    assert "Python pickle" in message
    assert "convert it to safetensors" in message


def test_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """0x0280 bytes, padded by spaces as safetensors pads: the first two bytes are those of a pickle."""
    length = int.from_bytes(VALID[:8], "little")
    header = VALID[8 : 8 + length].ljust(0x0280)
    (tmp_path / "lora.safetensors").write_bytes(with_header(header, VALID[8 + length :]))

    assert set(read_lora(tmp_path / "lora.safetensors", BASE).layers) == {"unet.a"}


def test_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lora.safetensors")

    with pytest.raises(InvalidLora, match="no regular file"):
        read_tensors(tmp_path / "lora.safetensors")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidLora, match="no regular file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_layer_without_size_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    rank, _ = shape
    tensors = {"unet.a.lora_A.weight": torch.ones(shape), "unet.a.lora_B.weight": torch.ones(4, rank)}

    assert "unet.a.lora_A.weight" in refused(tmp_path, save(tensors))


any_file = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        lora = read_lora(path, BASE)
    except InvalidLora:
        return
    assert all(layer.delta_OI().isfinite().all() for layer in lora.layers.values())


@given(content=st.binary(max_size=300))
@any_file
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    read_or_refuse(tmp_path / "any.safetensors", content)


@given(changes=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6))
@any_file
def test_any_damage_to_a_valid_file_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(VALID)
    for place, value in changes:
        content[place] = value
    read_or_refuse(tmp_path / "damaged.safetensors", bytes(content))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "C64", "F4"]) | json_values,
        "shape": st.lists(st.integers(0, 8) | st.integers(), max_size=5) | json_values,
        "data_offsets": st.lists(st.integers(0, 64) | st.integers(), min_size=2, max_size=2) | json_values,
    }
)
keys = st.sampled_from(["unet.a.lora_A.weight", "unet.a.lora_B.weight", "unet.a.alpha", "__metadata__"]) | st.text(
    max_size=12
)


@given(header=st.dictionaries(keys, entries | json_values, max_size=4), size=st.integers(0, 64))
@any_file
def test_any_header_is_read_or_refused(tmp_path: Path, header: dict[str, Any], size: int) -> None:
    read_or_refuse(tmp_path / "header.safetensors", with_header(header, b"\x3f" * size))


@given(words=st.text(max_size=60) | json_values.map(json.dumps))
@any_file
def test_any_peft_configuration_is_read_or_refused(tmp_path: Path, words: str) -> None:
    tensors = {"unet.a.lora_A.weight": torch.ones(2, 3), "unet.a.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, tmp_path / "peft.safetensors", metadata={"lora_adapter_metadata": words, "duolora.parts": words})
    read_or_refuse(tmp_path / "peft.safetensors", (tmp_path / "peft.safetensors").read_bytes())


stems = st.sampled_from(
    [
        "unet.a",
        "lora_unet_a",
        "lora_unet.a",
        "base_model.model.unet.a",
        "a",
        "unet.",
        "text_encoder.a",
        "lora_te1_a",
        "lora_te_a",
        "unet.input_blocks.4.1.x",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        "unet.a.processor.to_out",
        "transformer.x",
        "",
    ]
)
suffixes = st.sampled_from(
    [
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora_A.default.weight",
        ".lora_down.weight",
        ".lora_up.weight",
        ".lora.down.weight",
        "_lora.up.weight",
        ".lora_linear_layer.down.weight",
        ".alpha",
        ".hada_w1_a",
        ".weight",
        "",
    ]
)
tensors = st.lists(st.integers(0, 4), max_size=5).map(torch.ones)


@given(file=st.dictionaries(st.tuples(stems, suffixes).map("".join), tensors, max_size=6), based=st.booleans())
@settings(deadline=None, max_examples=400)
def test_any_keys_and_shapes_are_read_or_refused(file: dict[str, torch.Tensor], *, based: bool) -> None:
    try:
        lora = from_state_dict(file, {}, BASE if based else None)
    except InvalidLora:
        return
    assert all(layer.delta_OI().isfinite().all() for layer in lora.layers.values())
    assert not based or {layer.weight_shape for layer in lora.layers.values()} == {(4, 3)}
