"""What a job's owner is told of its result."""

import pytest

from api.db import transaction
from api.jobs import repository
from api.jobs.repository import StoredArtifact
from tests.api.factories import claim, held


def picture(name):
    return StoredArtifact(
        name=name, filename=f"{name}.png", key=f"k/{name}", sha256="0" * 64, bytes=7, content_type="image/png"
    )


@pytest.mark.parametrize(
    ("positions", "strengths"),
    [(0, []), (1, [(1, 1)]), (3, [(1, 0), (1, 1), (0, 1)]), (5, [(1, 0), (1, 0.5), (1, 1), (0.5, 1), (0, 1)])],
)
def test_every_picture_of_a_slider_comes_with_its_strengths(caller, sessions, positions, strengths):
    path = caller.submit().headers["location"]
    made = [picture(f"slider_{place}") for place in reversed(range(positions))]
    while stage := claim(sessions):
        artifacts = [*made, picture("preview")] if stage.name == "package" else []
        with transaction(sessions) as session:
            repository.finish_stage(session, **held(stage), artifacts=artifacts, timings={})
    slider = caller.get(path).json()["result"]["slider"]
    assert [each["artifact"] for each in slider] == [f"slider_{place}" for place in range(positions)]
    assert [(each["content"], each["style"]) for each in slider] == strengths
