import pytest

from api.decoder.wire import (
    END,
    MOST_BYTES,
    Bounds,
    FileRefused,
    ImageRefused,
    Size,
    Told,
    decode_answer,
    encode_answer,
)


def test_bounds_arrive_as_they_were_sent():
    bounds = Bounds(max_pixels=1, min_side_px=2, keep_side_px=3, cpu_s=4, timeout_s=5.5, memory_bytes=6)
    assert Bounds.decode(bounds.encode()) == bounds


def test_answers_arrive_as_they_were_sent():
    assert decode_answer(encode_answer(Size(3, 4))) == Size(3, 4)
    told = Told("kohya", 8, mock=True)
    assert decode_answer(encode_answer(told)) == told
    assert len(encode_answer(FileRefused("invalid_lora", "\U0001f600" * 5000))) < MOST_BYTES
    refusal = decode_answer(encode_answer(ImageRefused("damaged", "It is\ncut off.")))
    assert (refusal.code, refusal.detail) == ("damaged", "It is\ncut off.")
    assert encode_answer(refusal).count(END) == 1


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"x",
        b"[]",
        b"null",
        b'{"width": 0, "height": 5}',
        b'{"width": -3, "height": -4}',
        b'{"width": "3"}',
        b"\xff",
        b'{"code": 1}',
    ],
)
def test_what_is_no_answer_is_none(said):
    assert decode_answer(said) is None
