"""Places that requests share."""

import pytest

from api.errors import Unavailable
from api.places import Places


def test_a_place_is_free_again_when_its_work_ends_or_fails():
    places = Places(1, wait_s=0.01, refusal="full")
    with pytest.raises(ValueError, match="broken"), places.taken():
        raise ValueError("broken")
    with places.taken():
        pass


def test_who_finds_no_place_is_told_so():
    places = Places(2, wait_s=0.01, refusal="full")
    with places.taken(), places.taken(), pytest.raises(Unavailable, match="full") as refusal, places.taken():
        pass
    assert refusal.value.code == "busy"
