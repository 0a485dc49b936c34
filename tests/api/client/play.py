"""A worker played through the repository, and what is submitted to it."""

import hashlib
from datetime import timedelta

from api.db import transaction
from api.jobs import repository


def submit(client, pictures, **wishes):
    return client.personalize(content=pictures[:2], style=pictures[2:], subject_class="teapot", **wishes)


def finish(sessions, objects, job, content):
    """Play the worker of all stages; the last one leaves one file."""
    while True:
        with transaction(sessions) as session:
            stage = repository.claim_stage(session, repository.Claimant(worker_id="test", lease=timedelta(minutes=1)))
            if stage is None:
                return
            artifacts = []
            if stage.name == "package":
                key = f"test/{stage.stage_id}"
                objects.put_bytes(key, content, "image/png")
                artifacts = [
                    repository.StoredArtifact(
                        name="preview",
                        filename="preview.png",
                        key=key,
                        sha256=hashlib.sha256(b"picture").hexdigest(),
                        bytes=len(content),
                        content_type="image/png",
                    )
                ]
            repository.finish_stage(
                session, stage_id=stage.stage_id, fencing_token=stage.fencing_token, artifacts=artifacts, timings={}
            )
