"""A worker played through the repository, and what is submitted to it."""

import hashlib
from datetime import timedelta

from api.db import transaction
from api.jobs import repository
from api.object_keys import artifact_key


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


def finish_loras(sessions, objects):
    """Play the worker of one training of content, which leaves one file."""
    with transaction(sessions) as session:
        stage = repository.claim_stage(session, repository.Claimant(worker_id="test", lease=timedelta(minutes=1)))
        key = artifact_key(stage.account_id, stage.job_id, stage.name, stage.attempt, "content_lora.safetensors")
        objects.put_bytes(key, b"weights", "application/octet-stream")
        made = repository.StoredArtifact(
            name="content_lora",
            filename="content_lora.safetensors",
            key=key,
            sha256=hashlib.sha256(b"weights").hexdigest(),
            bytes=7,
            content_type="application/octet-stream",
        )
        repository.finish_stage(session, **stage.proof, artifacts=[made], timings={})
