"""Pictures that look alike have hashes that are near each other."""

import pytest
from PIL import Image

from api.jobs.resemblance import dhash, distance, resemble
from tests.api.factories import encode


@pytest.fixture
def hashed(tmp_path):
    def make(image):
        path = tmp_path / "picture.png"
        path.write_bytes(encode(image, "PNG"))
        return dhash(path)

    return make


def picture(seed):
    """Blots of light and shade that are the same for a seed."""
    small = Image.new("L", (6, 6))
    small.putdata([(seed * 7919 + place * 104_729 + place * place * seed * 31) % 256 for place in range(36)])
    return small.resize((240, 180), Image.Resampling.BICUBIC).convert("RGB")


def test_one_picture_has_one_hash_of_64_bits(hashed):
    assert hashed(picture(1)) == hashed(picture(1))
    assert len(hashed(picture(1))) == 16


def test_scaled_darkened_and_recompressed_it_resembles_itself(hashed, tmp_path):
    original = picture(3)
    (tmp_path / "small.jpg").write_bytes(encode(original, "JPEG", quality=40))
    changed = [original.resize((97, 73)), original.point(lambda value: value * 0.7), Image.open(tmp_path / "small.jpg")]
    assert all(resemble(hashed(original), hashed(image)) for image in changed)


def test_other_pictures_do_not(hashed):
    hashes = [hashed(picture(seed)) for seed in range(1, 12)]
    pairs = [(one, other) for place, one in enumerate(hashes) for other in hashes[:place]]
    assert not any(resemble(one, other) for one, other in pairs)


def test_left_to_right_brightness_is_what_a_bit_says(hashed):
    rising = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90)
    assert {hashed(rising), hashed(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT))} == {"f" * 16, "0" * 16}
    assert distance("f" * 16, "0" * 16) == 64
