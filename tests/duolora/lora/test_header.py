"""A header is read as the reference reader reads it, and without torch; `test_safe_file.py` has the hostile ones."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from duolora.errors import InvalidLora
from duolora.lora.header import read_header

if TYPE_CHECKING:
    from pathlib import Path

keys = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=20).filter(
    lambda key: key != "__metadata__"
)
shapes = st.lists(st.integers(0, 5), max_size=4)
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@given(
    file=st.dictionaries(keys, st.tuples(shapes, dtypes), min_size=1, max_size=5),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_reference_writes_is_read(
    tmp_path: Path, file: dict[str, tuple[list[int], torch.dtype]], metadata: dict[str, str]
) -> None:
    tensors = {key: torch.zeros(shape, dtype=dtype) for key, (shape, dtype) in file.items()}
    save_file(tensors, tmp_path / "any.safetensors", metadata=metadata)

    header = read_header(tmp_path / "any.safetensors")

    assert header.shapes == {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    assert header.metadata == metadata


@pytest.mark.parametrize(
    "words", ['{"a":1,"a":1}', '{"__metadata__":{"a":"x","a":"y"}}', '{"a":{"dtype":"F32","dtype":"F16"}}']
)
def test_a_key_that_comes_twice_is_refused(tmp_path: Path, words: str) -> None:
    (tmp_path / "twice.safetensors").write_bytes(len(words).to_bytes(8, "little") + words.encode())

    with pytest.raises(InvalidLora, match="names one key twice"):
        read_header(tmp_path / "twice.safetensors")


def test_it_needs_no_torch() -> None:
    alone = (
        "import sys, duolora.lora.header, duolora.lora.factors, duolora.lora.foreign; sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", alone], check=False).returncode == 0
