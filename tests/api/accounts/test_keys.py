import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.accounts import keys
from api.accounts.keys import MalformedKey


def test_a_key_survives_the_journey_and_hides_its_secret():
    made = keys.generate()
    assert keys.parse(made.text) == made
    assert made.text.startswith(f"duo_live_{made.id}_")
    assert made.secret not in repr(made)
    assert made.secret not in made.prefix
    assert made.matches(keys.parse(made.text).digest)
    assert not made.matches(keys.generate().digest)


def test_a_secret_has_at_least_160_random_bits():
    assert 62**keys.SECRET_LENGTH > 2**160
    assert len({keys.generate().secret for _ in range(100)}) == 100


@given(st.integers(0, 100), st.sampled_from("abcXYZ019_"))
def test_one_wrong_character_is_seen_by_the_checksum(position, character):
    text = keys.generate().text
    at = position % len(text)
    changed = text[:at] + character + text[at + 1 :]
    if changed != text:
        with pytest.raises(MalformedKey):
            keys.parse(changed)


@pytest.mark.parametrize(
    "text", ["", "duo", "duo_live_x_y_z", "Bearer", "duo_live_" + "a" * 12 + "_" + "b" * 32, "é" * 60]
)
def test_what_is_no_key_is_refused(text):
    with pytest.raises(MalformedKey):
        keys.parse(text)


def test_a_key_with_something_around_it_is_refused():
    text = keys.generate().text
    for changed in (f" {text}", f"{text}\n", f"{text}0", text.upper()):
        with pytest.raises(MalformedKey):
            keys.parse(changed)
