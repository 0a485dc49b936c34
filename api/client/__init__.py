"""Python client of the service: submit, wait, download. Needs only `duolora[client]` (httpx and pydantic).

from api.client import Client

with Client("http://127.0.0.1:8000", api_key="duo_...") as client:
    job = client.personalize(content=["cat1.jpg", "cat2.jpg"], style=["ink.png"], subject_class="cat")
    job = job.wait(on_progress=print)
    files = client.download(job, "out")

`AsyncClient` has the same methods, to be awaited; what gives one thing after another is for `async for`.
"""

from __future__ import annotations

from api.client.core import AsyncCore, SyncCore
from api.client.errors import ClientError, DamagedDownload, JobNotSucceeded, MissingFormat, ServiceRefused
from api.client.handles import AsyncJob, Job
from api.client.jobs import Jobs
from api.client.keys import Keys
from api.client.loras import Loras
from api.client.records import (
    Artifact,
    Attempt,
    Deletion,
    Delivery,
    DeliveryAttempt,
    Event,
    GenerateWishes,
    JobCheck,
    JobRecord,
    Key,
    LogLine,
    Lora,
    LoraFile,
    MergeWishes,
    Progress,
    Recipes,
    Result,
    SliderPosition,
    Tally,
    Timings,
    TrainWishes,
    Upload,
    Webhook,
    Wishes,
)
from api.client.signatures import InvalidSignature, verify_webhook
from api.client.uploads import Uploads
from api.client.webhooks import Webhooks

__all__ = [
    "Artifact",
    "AsyncClient",
    "AsyncJob",
    "Attempt",
    "Client",
    "ClientError",
    "DamagedDownload",
    "Deletion",
    "Delivery",
    "DeliveryAttempt",
    "Event",
    "GenerateWishes",
    "InvalidSignature",
    "Job",
    "JobCheck",
    "JobNotSucceeded",
    "JobRecord",
    "Key",
    "LogLine",
    "Lora",
    "LoraFile",
    "MergeWishes",
    "MissingFormat",
    "Progress",
    "Recipes",
    "Result",
    "ServiceRefused",
    "SliderPosition",
    "Tally",
    "Timings",
    "TrainWishes",
    "Upload",
    "Webhook",
    "Wishes",
    "verify_webhook",
]


class Client(Jobs, Loras, Uploads, Webhooks, Keys, SyncCore):
    """A connection to one service.

    Args:
        base_url: Where the service is, as `duolora up` prints it.
        api_key: A key of that service.
        timeout_s: Longest wait for one answer.
        retries: How often a request is sent again that was not answered, or is to come again later.
    """

    def handle(self, job: JobRecord) -> Job:
        """Return a job that can be asked itself."""
        return Job.of(job, self)


class AsyncClient(Jobs, Loras, Uploads, Webhooks, Keys, AsyncCore):
    """A connection to one service whose operations are to be awaited.

    Args:
        base_url: Where the service is, as `duolora up` prints it.
        api_key: A key of that service.
        timeout_s: Longest wait for one answer.
        retries: How often a request is sent again that was not answered, or is to come again later.
    """

    def handle(self, job: JobRecord) -> AsyncJob:
        """Return a job that can be asked itself."""
        return AsyncJob.of(job, self)
