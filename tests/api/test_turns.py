"""Who has a turn, and who is sent away."""

import pytest

from api.errors import Unavailable
from api.turns import Turns


def test_no_more_than_may_have_a_turn_at_once():
    turns = Turns(2, 0.01, "Come again.")
    with turns.take(), turns.take(), pytest.raises(Unavailable, match="Come again") as caught, turns.take():
        pass
    assert caught.value.code == "busy"


def test_a_turn_that_failed_is_over():
    turns = Turns(1, 0.01, "Come again.")
    with pytest.raises(ValueError, match="damaged"), turns.take():
        raise ValueError("damaged")
    with turns.take():
        pass
