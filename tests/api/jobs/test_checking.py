"""A submission that is only looked at."""

import json
from datetime import timedelta
from typing import ClassVar

import pytest
from PIL import Image
from sqlalchemy import select, update

from api.accounts.models import Account
from api.accounts.service import issue_key
from api.db import transaction
from api.jobs.memory_prediction import predict_peaks
from api.jobs.models import Stage
from api.jobs.prediction import predict, steps_of, work_of
from api.loras.models import Lora
from duolora.config import Prompts
from tests.api.factories import Caller, claim, encode, finish, make_account, make_job, make_lora, png, snapshot
from tests.api.jobs.test_archive import WHOLE, archive
from tests.api.jobs.test_routes import pointers, problem
from tests.api.uploads.test_routes import upload
from tests.support.company import alone, offer_as_tiny

ONLY = {"validate_only": "true"}


@pytest.fixture(autouse=True)
def a_stage_for_each_lora(monkeypatch):
    offer_as_tiny(monkeypatch, alone)


@pytest.fixture
def nothing_stored(sessions, store):
    before = store.keys()
    yield
    assert all(rows == [] for rows in snapshot(sessions).values())
    assert store.keys() == before


def picture(seed, size=(240, 180)):
    """Blots of light and shade that are the same for a seed."""
    small = Image.new("L", (6, 6))
    small.putdata([(seed * 7919 + place * 104_729 + place * place * seed * 31) % 256 for place in range(36)])
    return small.resize(size, Image.Resampling.BICUBIC).convert("RGB")


def check(caller, content, style, params=None):
    answer = submit(caller, content, style, params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def submit(caller, content, style, params=None):
    files = [("content_images", (f"c{n}.png", data)) for n, data in enumerate(content)]
    files += [("style_images", (f"s{n}.png", data)) for n, data in enumerate(style)]
    return caller.post("/jobs", files=files, data={} if params is None else {"params": params}, params=ONLY)


def codes(hints):
    return [(hint["code"], hint["pointer"]) for hint in hints]


@pytest.mark.usefixtures("nothing_stored")
class TestCheck:
    def test_it_says_what_the_job_would_be(self, caller):
        content = [encode(picture(seed), "PNG") for seed in (1, 2, 3)]
        found = check(caller, content, [encode(picture(4), "PNG")], '{"rank": 3, "steps": {"content": 7}}')
        assert found["ok"]
        assert found["config"]["content"]["rank"] == 3
        merge_steps = found["config"]["merge"]["steps"]
        assert [(stage["name"], stage["depends_on"], stage["steps"]) for stage in found["stages"]] == [
            ("content_lora", [], 7),
            ("style_lora", [], found["config"]["style"]["steps"]),
            ("merge", ["content_lora", "style_lora"], merge_steps),
            ("package", ["merge"], None),
        ]
        assert (found["predicted_seconds"], found["predicted_peak_bytes"]) == (None, None)
        assert [(image["side"], image["ordinal"], image["ok"]) for image in found["images"]] == [
            ("content", 0, True),
            ("content", 1, True),
            ("content", 2, True),
            ("style", 0, True),
        ]
        assert (found["images"][0]["width"], found["images"][0]["height"]) == (240, 180)
        assert found["hints"] == []

    def test_pictures_that_cannot_be_used_are_told_of_beside_the_others(self, caller):
        found = check(caller, [png(), b"no picture"], [png(color=(0, 0, 9))])
        assert not found["ok"]
        assert [image["ok"] for image in found["images"]] == [True, False, True]
        assert found["images"][1]["problem"]["pointer"] == "/content_images/1"
        assert found["images"][1]["problem"]["code"] == "not_an_image"

    def test_it_hints_at_what_is_too_small_twice_or_too_few(self, caller):
        first = picture(1)
        again, other = encode(first, "JPEG", quality=50), encode(picture(2, (40, 60)), "PNG")
        content = [encode(first, "PNG"), encode(first, "WEBP", lossless=True), again, other]
        found = check(caller, content, [encode(picture(3), "PNG")])
        assert [codes(image["hints"]) for image in found["images"]] == [
            [],
            [("duplicate", "/content_images/1")],
            [("near_duplicate", "/content_images/2")],
            [("small", "/content_images/3")],
            [],
        ]
        found = check(caller, [encode(picture(5), "PNG")], [encode(picture(6), "PNG")])
        assert codes(found["hints"]) == [("too_few", "/content_images")]

    def test_it_hints_at_sides_that_are_alike(self, caller):
        content = [encode(picture(seed), "PNG") for seed in (1, 2, 3)]
        style = [encode(picture(4), "PNG"), encode(picture(2), "JPEG"), encode(picture(3), "JPEG")]
        found = check(caller, content, style)
        assert codes(found["hints"]) == [("sides_alike", "/style_images/1")]
        assert "/content_images/1" in found["hints"][0]["detail"]

    def test_refused_parameters_are_refused_here_too(self, caller):
        assert pointers(problem(submit(caller, [png()], [png()], '{"rank": 0}'), 422)) == ["/params/rank"]
        assert pointers(problem(submit(caller, [png()], []), 422)) == ["/style_images"]

    def test_an_archive_can_be_looked_at(self, caller):
        answer = caller.post("/jobs", files={"archive": ("a.zip", archive(WHOLE))}, params=ONLY)
        assert codes(answer.json()["hints"])[0] == ("too_few", "/archive/content")

    def test_a_quota_that_would_be_exceeded_is_told_not_refused(self, http, sessions):
        caller = Caller(http, issue_key(sessions, account="small", quotas={"max_queued_jobs": 0}))
        found = check(caller, [png()], [png()])
        size = sum(image["width"] > 0 for image in found["images"])
        assert (found["ok"], size) == (False, 2)
        queued, stored = found["quota"]
        assert queued == {"policy": "queued-jobs", "used": 0, "limit": 0, "after": 1}
        assert (stored["policy"], stored["limit"]) == ("stored-bytes", None)
        assert stored["after"] > stored["used"] == 0


def test_uploads_can_be_looked_at_and_are_not_fetched_for_it(caller, sessions, store):
    one, two = (upload(caller, encode(picture(seed), "PNG")).json()["id"] for seed in (1, 1))
    store.delete(store.keys())
    wish = {"content_upload_ids": [one, two], "style_upload_ids": [two]}
    found = caller.post("/jobs", json=wish, params=ONLY).json()
    assert codes(found["images"][1]["hints"]) == [("duplicate", "/content_upload_ids/1")]
    assert codes(found["hints"]) == [("too_few", "/content_upload_ids"), ("sides_alike", "/style_upload_ids/0")]


class TestPrediction:
    def run_one(self, sessions, seconds, **fields):
        make_job(sessions, make_account(sessions), **fields)
        while claimed := claim(sessions):
            finish(sessions, claimed)
        with transaction(sessions) as session:
            session.execute(update(Stage).values(started_at=Stage.finished_at - timedelta(seconds=seconds)))

    def test_it_is_by_what_such_stages_took(self, caller, sessions):
        self.run_one(sessions, 10)
        found = check(caller, [png()], [png()], '{"recipe": "tiny"}')
        assert [stage["predicted_seconds"] for stage in found["stages"]] == [10, 10, 10, 10]
        assert found["predicted_seconds"] == 40
        twice = 2 * found["config"]["content"]["steps"]
        found = check(caller, [png()], [png()], json.dumps({"recipe": "tiny", "steps": {"content": twice}}))
        assert found["stages"][0]["predicted_seconds"] == 20

    def test_mock_jobs_say_nothing_about_it(self, caller, sessions):
        self.run_one(sessions, 1, mock_outcome="succeed")
        assert check(caller, [png()], [png()], '{"recipe": "tiny"}')["predicted_seconds"] is None

    def test_jobs_that_are_shown_meanwhile_say_nothing_about_it(self, caller, sessions):
        drawing = alone("tiny", Prompts()).model_dump(mode="json") | {"preview_every": 10}
        self.run_one(sessions, 100, params=drawing)
        assert check(caller, [png()], [png()], '{"recipe": "tiny"}')["predicted_seconds"] is None
        self.run_one(sessions, 10)
        assert check(caller, [png()], [png()], '{"recipe": "tiny"}')["predicted_seconds"] is not None

    def test_of_another_base_nothing_is_known(self, sessions):
        self.run_one(sessions, 10)
        config = {"base_model": "sdxl", "content": {"steps": 5, "batch_size": 1, "resolution_px": 64}}
        with transaction(sessions) as session:
            assert predict(session, ["content_lora"], config) == {"content_lora": None}

    def test_of_stages_nobody_told_it_of_it_says_nothing(self):
        assert (steps_of("dream", {}), work_of("dream", {})) == (None, None)
        assert work_of("merge", {"merge": None}) is None


def test_the_account_is_not_touched(caller, sessions):
    check(caller, [png()], [png()])
    with transaction(sessions) as session:
        assert session.scalar(select(Account.stored_bytes).where(Account.name == "mine")) == 0


@pytest.mark.usefixtures("nothing_stored")
class TestKinds:
    def look(self, caller, **wish):
        answer = caller.post("/jobs", json=wish, params=ONLY)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def test_a_drawing_needs_no_pictures(self, caller):
        found = self.look(caller, kind="generate", prompts=["a dog"], images_per_prompt=2, steps={"sampling": 3})
        assert [(stage["name"], stage["steps"]) for stage in found["stages"]] == [("generate", 3)]
        assert (found["ok"], found["images"], found["hints"]) == (True, [], [])

    def test_of_a_training_of_one_side_the_other_is_not_missed(self, caller):
        files = [("style_images", ("s.png", png((256, 256))))]
        found = caller.post("/jobs", files=files, data={"params": '{"kind": "train"}'}, params=ONLY).json()
        assert [stage["name"] for stage in found["stages"]] == ["style_lora", "package"]
        assert (found["ok"], found["hints"]) == (True, [])


def test_what_a_merge_copies_from_the_library_counts(caller, sessions):
    account_id = make_account(sessions)
    content, style = (str(make_lora(sessions, account_id)) for _ in range(2))
    wish = {"kind": "merge", "content_lora_id": content, "style_lora_id": style}
    answer = caller.post("/jobs", json=wish, params=ONLY)
    assert answer.status_code == 200, answer.text
    with transaction(sessions) as session:
        held = sum(file["bytes"] for lora in session.scalars(select(Lora)) for file in lora.files[:1])
    assert answer.json()["quota"][1]["after"] == held > 0


class TestPeaks:
    """Memory is predicted by what stages of the same sizes took, and by nothing else."""

    WISH: ClassVar = {"recipe": "tiny"}

    def run_one(self, sessions, peaks, **fields):
        make_job(sessions, make_account(sessions), **fields)
        while claimed := claim(sessions):
            finish(sessions, claimed, timings={"train_s": 1.5, "peak_bytes": peaks[claimed.name]})

    def predicted(self, caller, **wish):
        found = check(caller, [png()], [png()], json.dumps(self.WISH | wish))
        return {stage["name"]: stage["predicted_peak_bytes"] for stage in found["stages"]}, found[
            "predicted_peak_bytes"
        ]

    PEAKS: ClassVar = {"content_lora": 10, "style_lora": 20, "merge": 3_000_000_000, "package": 5}

    def test_it_is_the_most_that_such_stages_took(self, caller, sessions):
        self.run_one(sessions, self.PEAKS)
        self.run_one(sessions, self.PEAKS | {"content_lora": 12, "style_lora": 15})
        assert self.predicted(caller) == (self.PEAKS | {"content_lora": 12}, 3_000_000_000)

    def test_what_only_takes_longer_takes_no_more(self, caller, sessions):
        self.run_one(sessions, self.PEAKS)
        assert self.predicted(caller, seed=7, steps={"content": 33})[0] == self.PEAKS

    @pytest.mark.parametrize("wish", [{"rank": 4}, {"resolution_px": 128}])
    def test_of_other_sizes_nothing_is_known(self, caller, sessions, wish):
        self.run_one(sessions, self.PEAKS)
        found, most = self.predicted(caller, **wish)
        assert (found["content_lora"], found["style_lora"], most) == (None, None, None)

    def test_of_another_base_or_from_a_mock_nothing_is_known(self, caller, sessions):
        other = alone("tiny", Prompts()).model_dump(mode="json") | {"base_model": "other"}
        self.run_one(sessions, self.PEAKS, params=other)
        self.run_one(sessions, self.PEAKS, mock_outcome="succeed")
        assert self.predicted(caller) == (dict.fromkeys(self.PEAKS), None)

    def test_a_stage_that_told_of_none_says_nothing(self, sessions):
        make_job(sessions, make_account(sessions))
        while claimed := claim(sessions):
            finish(sessions, claimed)
        config = alone("tiny", Prompts()).model_dump(mode="json")
        with transaction(sessions) as session:
            assert predict_peaks(session, ["merge"], config) == {"merge": None}

    def test_pictures_that_are_drawn_meanwhile_count(self, sessions):
        config = alone("tiny", Prompts()).model_dump(mode="json")
        self.run_one(sessions, self.PEAKS)
        with transaction(sessions) as session:
            assert predict_peaks(session, ["content_lora"], config) == {"content_lora": 10}
            shown = config | {"preview_every": 10}
            assert predict_peaks(session, ["content_lora"], shown) == {"content_lora": None}
