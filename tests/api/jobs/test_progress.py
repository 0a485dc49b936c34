from datetime import UTC, datetime, timedelta

import pytest

from api.jobs.models import Stage
from api.jobs.progress import job_progress, stage_progress
from api.jobs.queue import Outlook
from api.jobs.states import JobState, StageState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEIGHTS = {"content_lora": 0.3, "style_lora": 0.3, "merge": 0.3, "package": 0.1}


def running(name, step, total, *, since=(1, 100), age=0, **extra):
    """A running stage that reported `age` seconds ago and has counted since `since` (step, seconds before that)."""
    at = NOW.timestamp() - age
    start = None if since is None else {"step": since[0], "at": at - since[1]}
    return Stage(
        name=name, state=StageState.RUNNING, progress={"step": step, "total": total, "at": at, "since": start, **extra}
    )


def still(name, state):
    return Stage(name=name, state=state, progress=None)


def rest(*begun):
    names = [stage.name for stage in begun]
    return [*begun, *(still(name, StageState.WAITING) for name in WEIGHTS if name not in names)]


def test_nothing_done_yet():
    progress = job_progress(JobState.QUEUED, rest(), WEIGHTS, NOW)
    assert (progress.fraction, progress.stage, progress.step, progress.eta_seconds) == (0, None, None, None)


def test_the_fraction_follows_the_plans_weights():
    stages = rest(still("content_lora", StageState.SUCCEEDED), running("style_lora", 50, 100))
    progress = job_progress(JobState.RUNNING, stages, WEIGHTS, NOW)
    assert progress.fraction == pytest.approx(0.45)
    assert (progress.stage, progress.step, progress.total) == ("style_lora", 50, 100)


def test_the_eta_of_a_stage_is_its_remaining_steps_at_its_rate():
    stage = running("content_lora", 51, 101, since=(1, 100))  # 0.5 steps a second, 50 to go
    assert stage_progress(stage, NOW).eta_seconds == pytest.approx(100)


def test_time_goes_on_between_reports():
    stage = running("content_lora", 51, 101, since=(1, 100), age=30)
    assert stage_progress(stage, NOW).eta_seconds == pytest.approx(70)
    assert stage_progress(stage, NOW + timedelta(hours=1)).eta_seconds == 0


def test_the_eta_of_the_job_is_the_remaining_work_at_the_present_speed():
    stages = rest(running("content_lora", 51, 101, since=(1, 100)))
    progress = job_progress(JobState.RUNNING, stages, WEIGHTS, NOW)
    speed = 0.3 * 0.5 / 101
    assert progress.eta_seconds == pytest.approx((1 - 0.3 * 51 / 101) / speed, abs=0.1)


def test_two_stages_at_once_are_twice_as_fast():
    alone = job_progress(JobState.RUNNING, rest(running("content_lora", 51, 101)), WEIGHTS, NOW).eta_seconds
    both = job_progress(
        JobState.RUNNING, rest(running("content_lora", 51, 101), running("style_lora", 51, 101)), WEIGHTS, NOW
    ).eta_seconds
    assert both < alone / 2


@pytest.mark.parametrize(("step", "known"), [(1, False), (5, False), (6, True)])
def test_no_eta_in_the_first_steps(step, known):
    stages = rest(running("content_lora", step, 100, since=(1, 10)))
    assert (job_progress(JobState.RUNNING, stages, WEIGHTS, NOW).eta_seconds is not None) == known
    assert (stage_progress(stages[0], NOW).eta_seconds is not None) == known


def test_no_eta_before_the_first_step():
    stages = rest(running("content_lora", 0, 100, since=None))
    assert job_progress(JobState.RUNNING, stages, WEIGHTS, NOW).eta_seconds is None


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELED])
def test_an_ended_job_keeps_its_fraction_and_has_no_eta(state):
    stages = [still("content_lora", StageState.SUCCEEDED), still("style_lora", StageState.CANCELED)]
    stages += [still("merge", StageState.CANCELED), still("package", StageState.CANCELED)]
    progress = job_progress(state, stages, WEIGHTS, NOW)
    assert (progress.fraction, progress.eta_seconds) == (0.3, None)


def test_a_stage_that_waits_for_its_next_attempt_is_as_far_as_its_checkpoint():
    stage = running("content_lora", 50, 100)
    stage.state, stage.checkpoint = StageState.RUNNABLE, {"step": 40, "total": 100}
    assert stage_progress(stage, NOW).step == 40
    assert job_progress(JobState.RUNNING, rest(stage), WEIGHTS, NOW).fraction == pytest.approx(0.12)


def test_a_resumed_stage_that_has_not_reported_yet_is_as_far_as_its_checkpoint():
    stage = still("content_lora", StageState.RUNNING)
    stage.checkpoint = {"step": 40, "total": 100}
    progress = job_progress(JobState.RUNNING, rest(stage), WEIGHTS, NOW)
    assert (progress.step, progress.total, progress.fraction) == (40, 100, pytest.approx(0.12))


def test_the_speed_is_that_of_the_current_stage():
    progress = job_progress(JobState.RUNNING, rest(running("content_lora", 51, 101, since=(1, 100))), WEIGHTS, NOW)
    assert progress.steps_per_second == 0.5


def test_without_a_rate_experience_tells_the_time_left():
    outlook = Outlook(seconds=dict.fromkeys(WEIGHTS, 100.0), workers=1)
    stages = rest(still("content_lora", StageState.SUCCEEDED), running("style_lora", 25, 100, since=None))
    assert job_progress(JobState.RUNNING, stages, WEIGHTS, NOW, outlook=outlook).eta_seconds == 275
    done = job_progress(JobState.CANCELED, stages, WEIGHTS, NOW, outlook=outlook)
    assert done.eta_seconds is None


def test_success_is_one():
    stages = [still(name, StageState.SUCCEEDED) for name in WEIGHTS]
    assert job_progress(JobState.SUCCEEDED, stages, WEIGHTS, NOW).fraction == 1


def test_loss_and_note_are_passed_on():
    progress = job_progress(
        JobState.RUNNING, rest(running("content_lora", 5, 10, loss=0.25, note="training")), WEIGHTS, NOW
    )
    assert (progress.loss, progress.note) == (0.25, "training")


def test_a_stage_that_waits_for_its_next_attempt_counts_for_nothing():
    stage = running("content_lora", 50, 100)
    stage.state = StageState.RUNNABLE
    progress = job_progress(JobState.RUNNING, rest(stage), WEIGHTS, NOW)
    assert (progress.fraction, progress.stage) == (0, None)
