"""Keeping a LoRA against everything that may happen at the same moment: what is shown is always there, and whole."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from api.accounts.models import Account
from api.accounts.service import Caller as Owner
from api.db import transaction
from api.errors import NotFound, QuotaExceeded, Unavailable
from api.jobs.erasure import Eraser
from api.jobs.models import Artifact, Job, JobImage
from api.loras import keeping
from api.loras.models import LoraState
from api.loras.schemas import LoraPatch
from api.loras.service import LoraService
from api.storage import ObjectStore, StoreError


class InterruptedStore(ObjectStore):
    """The real store; something else happens before or after its first copy."""

    def __init__(self, settings, *, before=None, after=None) -> None:
        super().__init__(settings)
        self._before, self._after = before, after

    def copy(self, source, target):
        before, self._before = self._before, None
        if before is not None:
            before()
        super().copy(source, target)
        after, self._after = self._after, None
        if after is not None:
            after()


class Owned:
    """A LoRA that a job made, and what may be done with it."""

    def __init__(self, settings, library, janitor, made) -> None:
        self.library, self.janitor = library, janitor
        self._settings, self._made = settings, made
        self._owner = Owner(account_id=library.account().id, key_id="key", max_priority=0, scopes=frozenset())

    def keep(self, *, before=None, after=None, **changes):
        store = InterruptedStore(self._settings.store, before=before, after=after)
        return self._service(store).change(self._owner, self._made["id"], LoraPatch(kept=True, **changes))

    def read(self):
        return self._service().read(self._owner, self._made["id"])

    def erase(self):
        Eraser(self.library.sessions, self.library.store).delete(self._owner, self._made["job_id"])

    def expire(self):
        with transaction(self.library.sessions) as session:
            session.execute(update(Job).values(finished_at=Job.finished_at - timedelta(days=400), expires_at=None))
        self.janitor.tidy()

    def delete(self):
        self._service().delete(self._owner, self._made["id"])

    def clear_away(self):
        """Let the janitor look at whatever it is to look at later."""
        self.library.pass_time(hours=2)
        self.janitor.tidy()

    def counted(self):
        return self.library.account().stored_bytes

    def _service(self, store=None):
        return LoraService(self._settings, self.library.sessions, store or self.library.store)


@pytest.fixture
def lora(api_settings, library, janitor, made):
    return Owned(api_settings, library, janitor, made)


def test_a_kept_one_has_files_of_its_own_and_stays(lora, library):
    before = lora.counted()
    told = lora.keep()
    size = sum(file.bytes for file in told.files)
    assert told.kept
    assert lora.counted() == before + size
    assert len(library.objects()) == 2
    lora.erase()
    lora.clear_away()
    assert library.objects("jobs") == []
    assert [row.kept for row in library.rows()] == [True]
    library.check()
    assert lora.counted() == size


def test_keeping_it_again_changes_nothing(lora, library):
    lora.keep()
    keys, used = library.objects(), lora.counted()
    again = lora.keep(name="Tom")
    assert (again.kept, again.name) == (True, "Tom")
    assert (library.objects(), lora.counted()) == (keys, used)


@pytest.mark.parametrize("act", ["erase", "expire", "delete"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_goes_while_it_is_being_kept_is_gone(lora, library, act, moment):
    with pytest.raises(NotFound):
        lora.keep(**{moment: getattr(lora, act)})
    assert library.objects() == []
    with pytest.raises(NotFound):
        lora.read()
    lora.clear_away()
    assert library.rows() == library.objects() == []
    with library.sessions() as session:
        of_jobs = [*session.scalars(select(Artifact)), *session.scalars(select(JobImage))]
    assert lora.counted() == sum(row.bytes for row in of_jobs)


def test_of_two_who_keep_it_at_once_one_has_copied_in_vain(lora, library):
    assert lora.keep(before=lora.keep, tags=["cat"]).tags == ["cat"]
    assert len(library.objects()) == 2
    library.check()
    [row] = library.rows()
    assert row.stored_bytes == sum(file.bytes for file in row.all_files)


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.01, 0.02, 0.04])
def test_keeping_and_erasing_race(lora, library, delay_s):
    """Whoever wins: a row that is shown points to bytes that are there, and nothing else is left."""
    start = threading.Barrier(4)

    def keep():
        start.wait()
        try:
            lora.keep()
        except NotFound:
            return False
        return True

    def erase():
        start.wait()
        threading.Event().wait(delay_s)
        lora.erase()

    with ThreadPoolExecutor(4) as pool:
        keeps, erasures = [pool.submit(keep) for _ in range(2)], [pool.submit(erase) for _ in range(2)]
        kept = [each.result() for each in keeps]
        assert [each.result() for each in erasures] == [None, None]
    library.check()
    lora.clear_away()
    rows = library.rows()
    assert len(rows) == (1 if any(kept) else 0)
    assert sorted(library.objects()) == sorted(file.key for row in rows for file in row.all_files)
    assert lora.counted() == sum(row.stored_bytes for row in rows)
    library.check()


def test_who_takes_too_long_finds_it_cleared_away_and_keeps_nothing(lora, library, monkeypatch):
    monkeypatch.setattr(keeping, "WRITING_TIME", timedelta(seconds=-1))
    with pytest.raises(Unavailable):
        lora.keep(after=lora.janitor.tidy)
    assert library.objects() == []
    library.check()
    assert not lora.read().kept


def test_a_quota_that_is_used_up_leaves_it_as_it_was(lora, library):
    used = lora.counted()
    with transaction(library.sessions) as session:
        session.execute(update(Account).values(max_stored_bytes=used + 5))
    with pytest.raises(QuotaExceeded):
        lora.keep()
    assert (library.objects(), lora.counted(), lora.read().kept) == ([], used, False)


def test_a_store_that_breaks_off_leaves_it_as_it_was(lora, library):
    def break_off():
        raise StoreError("away")

    with pytest.raises(StoreError):
        lora.keep(after=break_off)
    assert library.objects() == []
    assert lora.keep().kept
    lora.clear_away()
    library.check()


def test_what_a_process_left_that_died_over_it_goes_an_hour_later(lora, library):
    class Killed(BaseException):
        """Ends a process."""

    def die():
        raise Killed

    with pytest.raises(Killed):
        lora.keep(after=die)
    lora.janitor.tidy()
    assert len(library.objects()) == 1  # somebody may be writing
    lora.clear_away()
    assert library.objects() == []
    [row] = library.rows()
    assert (row.state, row.settle_at, row.kept) == (LoraState.READY, None, False)
    library.check()
