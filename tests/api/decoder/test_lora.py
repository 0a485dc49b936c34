"""The header of a LoRA, read in a process of its own."""

import pytest

from api.decoder.client import Decoder
from api.decoder.wire import Bounds, FileRefused, Told
from api.loras import inspection
from tests.api.loras.conftest import lora_file

BOUNDS = inspection._BOUNDS


@pytest.fixture
def decoder():
    made = Decoder()
    yield made
    made.stop()


def read(decoder, tmp_path, data, **changes):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(data)
    limits = Bounds(**{name: getattr(BOUNDS, name) for name in Bounds.__slots__} | changes)
    return decoder.read_lora(path.open("rb"), limits)


def header(words):
    return len(words).to_bytes(8, "little") + words


def test_it_tells_what_the_file_is(decoder, tmp_path):
    assert read(decoder, tmp_path, lora_file(rank=8)) == Told("diffusers", 8, mock=False)


def test_what_is_none_is_refused_with_its_reason(decoder, tmp_path):
    with pytest.raises(FileRefused, match="ends inside its header") as caught:
        read(decoder, tmp_path, header(b"{}").replace(b"\x02", b"\x09", 1))
    assert caught.value.code == "invalid_lora"


def test_one_that_takes_too_much_is_refused_and_the_next_is_read(decoder, tmp_path):
    deep = b'{"__metadata__":{"a":[' + b"[]," * 690_000 + b"1]}}"
    with pytest.raises(FileRefused) as caught:
        read(decoder, tmp_path, header(deep), memory_bytes=100 * 2**20, timeout_s=30)
    assert caught.value.code in {"invalid_lora", "unreadable"}
    assert read(decoder, tmp_path, lora_file()).rank == 4


def test_a_header_is_parsed_by_another_process(tmp_path, monkeypatch):
    """This one parses nothing of it: were it to, all threads would wait for half a second."""
    path = tmp_path / "lora.safetensors"
    path.write_bytes(lora_file())
    monkeypatch.setattr("duolora.lora.header._checked", lambda *_: pytest.fail("parsed here"))
    assert inspection.inspect(path).rank == 4
