from __future__ import annotations

import pytest
import torch

from duolora.errors import InvalidConfig, OutOfMemory
from duolora.runtime import choose_runtime, memory_errors


def test_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert choose_runtime("cpu").dtype == torch.float32
    assert choose_runtime("cpu", "bfloat16").dtype == torch.bfloat16
    assert choose_runtime("cpu").device == torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (choose_runtime().device.type, choose_runtime().dtype) == ("cuda", torch.bfloat16)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (choose_runtime().device.type, choose_runtime().dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize(("device", "dtype"), [("toaster", "auto"), ("cpu", "int3"), ("cuda", "auto")])
def test_what_is_not_there_is_refused_by_name(device: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(InvalidConfig, match="int3" if dtype == "int3" else device):
        choose_runtime(device, dtype)


def test_random_numbers_follow_the_seed_on_the_cpu() -> None:
    runtime = choose_runtime("cpu")

    one, same, other = (torch.rand(4, generator=runtime.generator(seed)) for seed in (1, 1, 2))

    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_memory_error_of_the_device_becomes_the_engines_own() -> None:
    with pytest.raises(OutOfMemory) as caught, memory_errors():
        raise torch.cuda.OutOfMemoryError("tried to allocate 80 GiB")

    assert isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)
    with pytest.raises(ValueError, match="something else"), memory_errors():
        raise ValueError("something else")
