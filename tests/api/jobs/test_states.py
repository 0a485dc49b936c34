from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.jobs.states import (
    JOB_TRANSITIONS,
    STAGE_TRANSITIONS,
    TERMINAL_JOBS,
    TERMINAL_STAGES,
    IllegalTransition,
    JobState,
    StageState,
    check_job,
    check_stage,
    derive_job_state,
)

LEGAL_STAGE = {
    "waiting > runnable",
    "waiting > canceled",
    "runnable > running",
    "runnable > canceled",
    "running > succeeded",
    "running > runnable",
    "running > failed",
    "running > canceled",
}
LEGAL_JOB = {
    "queued > running",
    "queued > canceled",
    "queued > expired",
    "running > succeeded",
    "running > failed",
    "running > canceled",
}


@pytest.mark.parametrize(("before", "after"), list(product(StageState, StageState)))
def test_only_the_tabled_stage_transitions_pass(before, after):
    if f"{before} > {after}" in LEGAL_STAGE:
        check_stage(before, after)
    else:
        with pytest.raises(IllegalTransition, match=f"from {before} to {after}"):
            check_stage(before, after)


@pytest.mark.parametrize(("before", "after"), list(product(JobState, JobState)))
def test_only_the_tabled_job_transitions_pass(before, after):
    if f"{before} > {after}" in LEGAL_JOB:
        check_job(before, after)
    else:
        with pytest.raises(IllegalTransition, match=f"from {before} to {after}"):
            check_job(before, after)


@pytest.mark.parametrize("table", [STAGE_TRANSITIONS, JOB_TRANSITIONS])
def test_terminal_is_final_and_every_transition_is_explained(table):
    assert not {before for before, _ in table} & (TERMINAL_STAGES | TERMINAL_JOBS)
    assert all(len(reason) > 10 for reason in table.values())


W, R, U, S, F, C = (
    StageState.WAITING,
    StageState.RUNNABLE,
    StageState.RUNNING,
    StageState.SUCCEEDED,
    StageState.FAILED,
    StageState.CANCELED,
)


@pytest.mark.parametrize(
    ("stages", "started", "expected"),
    [
        ([R, R, W, W], False, JobState.QUEUED),
        ([U, R, W, W], True, JobState.RUNNING),
        ([R, R, W, W], True, JobState.RUNNING),  # given back at a shutdown
        ([S, R, W, W], True, JobState.RUNNING),
        ([S, S, S, S], True, JobState.SUCCEEDED),
        ([S, F, C, C], True, JobState.FAILED),
        ([F, U, W, W], True, JobState.FAILED),
        ([C, C, C, C], False, JobState.CANCELED),
        ([S, C, C, C], True, JobState.CANCELED),
        ([U, C, C, C], True, JobState.RUNNING),  # canceled only once nothing runs
    ],
)
def test_a_job_is_derived_from_its_stages(stages, started, expected):
    assert derive_job_state(stages, started=started) is expected


@pytest.mark.parametrize(
    ("stages", "started", "expected"),
    [
        ([C, C, C, C], False, JobState.EXPIRED),
        ([S, C, C, C], True, JobState.FAILED),
        ([S, F, C, C], True, JobState.FAILED),
        ([S, S, S, S], True, JobState.SUCCEEDED),  # it was done when the deadline came
        ([U, C, C, C], True, JobState.RUNNING),
    ],
)
def test_a_deadline_expires_what_never_began_and_fails_what_runs(stages, started, expected):
    assert derive_job_state(stages, started=started, overdue=True) is expected


def test_a_job_without_stages_is_a_mistake():
    with pytest.raises(ValueError, match="without stages"):
        derive_job_state([], started=False)


@given(st.lists(st.sampled_from(StageState), min_size=1, max_size=6), st.booleans())
def test_derivation_keeps_its_promises_for_any_stages(stages, started):
    state = derive_job_state(stages, started=started)
    assert (state is JobState.FAILED) == (F in stages)
    assert (state is JobState.SUCCEEDED) == (set(stages) == {S})
    if state is JobState.CANCELED:
        assert not {W, R, U} & set(stages)
    if {U, R, W} & set(stages) and F not in stages:
        assert state is (JobState.RUNNING if started else JobState.QUEUED)
    assert derive_job_state(list(reversed(stages)), started=started) is state
