"""Queries about LoRAs, against a real database."""

import uuid

import pytest

from api.db import transaction
from api.loras import repository
from api.loras.models import LoraState
from tests.api.factories import make_account, make_lora


def test_an_account_finds_its_own_and_nobody_elses(sessions):
    mine, theirs = make_account(sessions), make_account(sessions, "theirs")
    lora_id = make_lora(sessions, mine, name="cat")
    with transaction(sessions) as session:
        assert repository.find(session, account_id=mine, lora_id=lora_id).name == "cat"
        assert repository.find(session, account_id=theirs, lora_id=lora_id) is None
        assert repository.find(session, account_id=mine, lora_id=uuid.uuid4()) is None


@pytest.mark.parametrize("state", [LoraState.PENDING, LoraState.DELETING])
def test_what_is_on_its_way_in_or_out_is_not_found(sessions, state):
    account = make_account(sessions)
    lora_id = make_lora(sessions, account, state=state)
    with transaction(sessions) as session:
        assert repository.find(session, account_id=account, lora_id=lora_id) is None


def test_the_asked_format_is_picked_if_it_is_there_else_the_most_readable(sessions):
    account = make_account(sessions)
    both, foreign = make_lora(sessions, account), make_lora(sessions, account, formats=("other", "peft"))
    with transaction(sessions) as session:
        made = repository.find(session, account_id=account, lora_id=both)
        assert [made.file().format, made.file("kohya").format] == ["diffusers", "kohya"]
        assert repository.find(session, account_id=account, lora_id=foreign).file("kohya").format == "peft"
