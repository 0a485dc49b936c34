"""`duolora jobs` against a running stack, from its entry point on."""

import json
import os
import re
import subprocess
import sys
import uuid
import zipfile

import pytest
from PIL import Image

pytestmark = [pytest.mark.xdist_group("commands"), pytest.mark.timeout(120)]

FILES = 10


@pytest.fixture
def finished(submit, duolora):
    """Id of a job that has succeeded."""
    job_id = submit().out.strip()
    assert duolora("jobs", "watch", job_id).status == 0
    return job_id


def test_from_pictures_to_files_in_one_command(submit, tmp_path):
    wishes = ("--steps", "content=7", "--seed", 5, "--set", "rank=4", "--style-caption", "a house")
    ended = submit(*wishes, "--out", tmp_path / "out")
    assert (ended.status, ended.err.count("job ")) == (0, 1)
    assert sorted(ended.out.split()) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert len(ended.out.split()) == FILES
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["engine"] == "mock"
    config = report["config"]
    assert (config["content"]["steps"], config["style"]["rank"], config["merge"]["seed"]) == (7, 4, 5)
    assert config["prompts"]["style_captions"] == ["a house"]
    with Image.open(tmp_path / "out" / "preview.png") as picture:
        assert picture.width > 0


def test_submitting_prints_the_id_alone_and_watching_ends_with_the_job(submit, duolora):
    ended = submit()
    job_id = str(uuid.UUID(ended.out.strip()))
    watched = duolora("jobs", "watch", job_id)
    assert watched.status == 0
    assert re.search(r"state +succeeded", watched.out)
    assert re.search(r"request +[0-9a-f]{32}", watched.out)
    assert re.search(r"worker seconds +[\d.]+", watched.out)
    assert "merged.diffusers.safetensors" in watched.out
    assert duolora("jobs", "watch", job_id, "--json").document()["engine"] == "mock"


def test_a_job_that_fails_is_status_6_and_says_why(submit, duolora):
    ended = submit("--mock-outcome", "fail", "--watch")
    assert (ended.status, ended.out) == (6, "")
    assert "failed: the job asked the mock engine to fail" in ended.err
    failed = duolora("jobs", "list", "--state", "failed", "--limit", 1, "--json").document()[0]
    assert "mock_failure" in duolora("jobs", "show", failed["id"]).out
    attempts = duolora("jobs", "attempts", failed["id"], "--json").document()
    assert [one["error"]["code"] for one in attempts if one["outcome"] == "failed"] == ["mock_failure"]
    again = duolora("jobs", "retry", failed["id"]).out.strip()
    assert again != failed["id"]
    assert duolora("jobs", "watch", again).status == 6
    assert duolora("jobs", "download", again).status == 6


def test_a_wait_that_is_over_is_status_8_and_a_slow_job_can_be_canceled(submit, duolora):
    job_id = submit("--mock-outcome", "slow").out.strip()
    waited = duolora("jobs", "watch", job_id, "--timeout", 0)
    assert waited.status == 8
    assert "is still" in waited.err
    assert duolora("jobs", "delete", job_id).status == 5
    assert duolora("jobs", "cancel", job_id).status == 0
    assert duolora("jobs", "watch", job_id).status == 6
    assert duolora("jobs", "stop", job_id).out == f"{job_id} canceled\n"


def test_lists_are_tables_for_people_and_arrays_for_programs(finished, submit, duolora):
    other = submit("--watch", "--json").document()["id"]
    table = duolora("jobs", "list", "--limit", 2).out.splitlines()
    assert table[0].split() == ["id", "name", "kind", "state", "done", "stage", "engine", "created", "took"]
    assert [line.split()[0] for line in table[1:]] == [other, finished]
    array = duolora("jobs", "list", "--kind", "personalize", "--state", "succeeded", "--json").document()
    assert [job["id"] for job in array[:2]] == [other, finished]


def test_a_name_that_looks_like_markup_is_shown_as_it_is(submit, duolora):
    name = "a[/b] [red]c[/red] \\[d"
    job_id = submit("--name", name).out.strip()
    assert name in duolora("jobs", "show", job_id).out
    assert name in duolora("jobs", "list", "--limit", 1).out


def test_events_and_logs_come_line_by_line(finished, duolora):
    events = duolora("jobs", "events", finished, "--json").lines()
    assert (events[0]["type"], events[-1]["type"]) == ("job.queued", "job.succeeded")
    assert duolora("jobs", "events", finished, "--after", events[-2]["id"]).out.strip().endswith("job.succeeded")
    lines = duolora("jobs", "logs", finished, "--stage", "merge").out.splitlines()
    assert lines
    assert all("merge.1 info: the mock engine learns nothing" in line for line in lines)


def test_an_ended_job_is_deleted_and_then_there_is_none(finished, duolora):
    ended = duolora("jobs", "delete", finished)
    assert ended.status == 0
    assert ended.out.startswith(f"{finished} deleted: 4 inputs")
    assert duolora("jobs", "show", finished).status == 4
    assert duolora("jobs", "show", uuid.uuid4()).status == 4


def test_the_same_idempotency_key_is_the_same_job(submit):
    key = uuid.uuid4().hex
    assert submit("--idempotency-key", key).out == submit("--idempotency-key", key).out


@pytest.fixture
def archive(tmp_path, pictures):
    """A zip with pictures of the style alone."""
    path = tmp_path / "job.zip"
    with zipfile.ZipFile(path, "w") as written:
        written.write(pictures["style"] / "0.png", "style/0.png")
    return path


class TestArchive:
    """`duolora jobs submit --archive`."""

    def test_its_job_is_of_the_kind_and_has_the_options_that_were_asked_for(self, duolora, archive, tmp_path):
        wishes = ("--kind", "train", "--engine", "mock", "--rank", 3)
        ended = duolora("jobs", "submit", "--archive", archive, *wishes, "--out", tmp_path / "out")
        assert ended.status == 0, ended.err
        config = json.loads((tmp_path / "out" / "report.json").read_text())["config"]
        assert (config["kind"], config["style"]["rank"]) == ("train", 3)

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("--kind", "merge", "--content-lora", "1", "--style-lora", "2"), "/params/content_lora_id"),
            (("--kind", "train", "--lora", f"{uuid.uuid4()}=0.5"), "/params/loras"),
            (("--kind", "train", "--prompt", "a cat"), "/params/prompts"),
            (("--kind", "train", "--content", "a.png"), "an archive has its own pictures: leave out --content"),
            (
                ("--kind", "train", "--content", "a.png", "--style", "upload:1"),
                "leave out --content and --style",
            ),
        ],
    )
    def test_what_nothing_takes_is_refused(self, duolora, archive, words, told):
        ended = duolora("jobs", "submit", "--archive", archive, "--engine", "mock", *words)
        assert (ended.status, ended.out) == (2, "")
        assert told in ended.err


class TestCheck:
    """`duolora jobs submit --check`."""

    def test_what_a_job_would_be_is_shown_and_nothing_is_begun(self, submit, duolora):
        def newest():
            return duolora("jobs", "list", "--limit", 1, "--json").document()[0]["id"]

        before = submit().out.strip()
        assert newest() == before
        ended = submit("--check", "--steps", "content=7")
        assert (ended.status, ended.err) == (0, "")
        rows = [line.split() for line in ended.out.splitlines()]
        assert ["stage", "after", "steps", "seconds"] in rows
        assert ["content_lora", "-", "7"] in [row[:3] for row in rows]
        assert "all" in [row[0] for row in rows if row]
        assert re.search(r"^queued-jobs +\d+ +\d+ +- *$", ended.out, re.MULTILINE)
        assert re.search(r"^stored-bytes +[\d.]+ k?B +[\d.]+ k?B", ended.out, re.MULTILINE)
        assert "/content_images  too_few" in re.sub(" +", "  ", ended.out)
        assert newest() == before

    def test_for_programs_it_is_the_whole_document(self, submit):
        found = submit("--check", "--rank", 3, "--json").document()
        assert (found["ok"], found["config"]["content"]["rank"]) == (True, 3)
        assert [each["policy"] for each in found["quota"]] == ["queued-jobs", "stored-bytes"]

    def test_uploads_and_zips_are_looked_at_likewise(self, duolora, pictures, tmp_path):
        ids = duolora("uploads", "create", *sorted(pictures["content"].glob("*.png"))).out.split()
        found = duolora("jobs", "submit", "--kind", "train", "--style", *ids, "--check", "--json").document()
        assert [stage["name"] for stage in found["stages"]] == ["style_lora", "package"]
        with zipfile.ZipFile(tmp_path / "job.zip", "w") as archive:
            archive.write(pictures["content"] / "0.png", "content/0.png")
            archive.write(pictures["style"] / "0.png", "style/0.png")
        zipped = duolora("jobs", "submit", "--archive", tmp_path / "job.zip", "--check", "--seed", 7, "--json")
        assert zipped.document()["config"]["merge"]["seed"] == 7

    def test_a_picture_that_cannot_be_used_is_status_2_and_named(self, submit, pictures):
        (pictures["style"] / "2.png").write_text("no picture")
        ended = submit("--check")
        assert ended.status == 2
        assert re.search(r"/style_images/2 +\w+", ended.out)
        assert "would be refused: some pictures cannot be used" in ended.err
        assert submit().status == 2

    def test_a_quota_that_is_used_up_is_status_5(self, submit, duolora, stack, monkeypatch):
        for name in ("DATABASE_URL", "SECRET_KEYS"):
            monkeypatch.setenv(name, stack.env[name])
        with monkeypatch.context() as patch:
            patch.delenv("DUOLORA_URL")
            key = duolora("keys", "create", "--account", "full", "--max-stored-bytes", 10).out.strip()
        monkeypatch.setenv("DUOLORA_API_KEY", key)
        ended = submit("--check")
        assert ended.status == 5
        assert "10 B" in ended.out
        assert "would be refused: a quota is used up" in ended.err
        assert submit().status == 5

    @pytest.mark.parametrize(
        ("words", "told"), [(("--rank", "100000"), "/params/rank"), (("--watch",), "leave out --watch")]
    )
    def test_parameters_that_are_refused_are_status_2(self, submit, words, told):
        ended = submit("--check", *words)
        assert (ended.status, ended.out) == (2, "")
        assert told in ended.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--kind", "train", "--prompt", "a cat"), "/params/prompts"),
        (("--lora", str(uuid.uuid4())), "/params/loras"),
        (("--content-lora", str(uuid.uuid4())), "/params/content_lora_id"),
    ],
)
def test_options_of_other_kinds_are_refused(submit, words, told):
    ended = submit(*words)
    assert (ended.status, ended.out) == (2, "")
    assert told in ended.err


def test_a_job_that_draws_takes_no_pictures(duolora, pictures):
    ended = duolora("jobs", "submit", "--kind", "generate", "--prompt", "a cat", "--content", pictures["content"])
    assert (ended.status, ended.out) == (2, "")
    assert "/content_images" in ended.err


def test_a_lora_that_is_named_twice_goes_to_the_service_twice(duolora):
    lora = str(uuid.uuid4())
    words = ("--kind", "generate", "--prompt", "a cat", "--lora", lora, "--lora", f"{lora}=0.5")
    ended = duolora("jobs", "submit", *words)
    assert ended.status == 2
    assert "/loras/1" in ended.err


def test_recipes_are_listed(duolora):
    assert "base models: tiny" in duolora("jobs", "recipes").out
    assert duolora("jobs", "recipes", "--json").document()["default_base_model"] == "tiny"


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--rank", "100000"), 2, "/params/rank"),
        (("--mock-outcome", "perish"), 2, "/params/mock_outcome"),
        (("--set", "rank"), 2, "is not NAME=JSON"),
        (("--set", "kind=[]"), 2, "/params/kind"),
        (("--steps", "content=many"), 2, "--steps"),
        (("--content", "nowhere.png"), 1, "nowhere.png"),
    ],
)
def test_a_wish_that_cannot_be_met_is_said_on_standard_error(submit, words, status, told):
    ended = submit(*words)
    assert (ended.status, ended.out) == (status, "")
    assert told in ended.err


def test_a_folder_without_pictures_is_said(submit, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = submit("--content", tmp_path / "empty")
    assert ended.status == 2
    assert "holds no pictures" in ended.err


@pytest.mark.parametrize(
    ("environment", "status", "told"),
    [
        ({"DUOLORA_API_KEY": ""}, 3, "set DUOLORA_API_KEY"),
        ({"DUOLORA_API_KEY": "duo_wrong"}, 3, "invalid_api_key"),
        ({"DUOLORA_URL": "http://127.0.0.1:1"}, 7, "http://127.0.0.1:1 does not answer"),
        ({"DUOLORA_URL": "nonsense"}, 7, "nonsense does not answer"),
    ],
)
def test_a_service_that_cannot_be_used_is_one_line(duolora, monkeypatch, environment, status, told):
    monkeypatch.setattr("api.client.core.FIRST_PAUSE_S", 0.0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = duolora("jobs", "list")
    assert (ended.status, ended.out, ended.err.count("\n")) == (status, "", 1)
    assert told in ended.err


def test_as_a_process_of_its_own_it_answers_likewise(stack):
    environment = os.environ | {"DUOLORA_URL": "http://127.0.0.1:1", "DUOLORA_API_KEY": stack.owner.api_key}
    command = [sys.executable, "-m", "duolora.cli", "jobs", "list", "--url", stack.api_url, "--json"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert isinstance(json.loads(ended.stdout), list)


def test_every_help_says_what_the_statuses_mean(duolora):
    for words in (("jobs",), ("jobs", "submit"), ("webhooks", "create"), ("keys", "rotate")):
        ended = duolora(*words, "--help")
        assert ended.status == 0
        assert "6 the job did not succeed" in ended.out
