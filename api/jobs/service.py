"""What happens to jobs on request: submit, cancel, stop, try again.

Each call writes in one transaction, and never holds one while it talks to the store.
"""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from api.accounts import quotas
from api.db import transaction
from api.idempotency import Answer, Fresh, Ledger, Replay, fingerprint
from api.identifiers import uuid7
from api.jobs import kinds, listing, repository, requests, wishes
from api.jobs.checking import Checker
from api.jobs.darkroom import Darkroom
from api.jobs.engines import EngineName, MockOutcome
from api.jobs.gathering import Gatherer
from api.jobs.ingredients import Ingredient, find_ingredients
from api.jobs.inputs import to_inputs, with_loras
from api.jobs.models import Job
from api.jobs.orders import Order, OrderBook, again
from api.jobs.plan import plan
from api.jobs.reading import JobReader
from api.jobs.submission import Submission, check, check_scopes
from duolora.config import SCHEMA_VERSION

if TYPE_CHECKING:
    import uuid
    from typing import Any

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.jobs.check_schemas import JobCheck
    from api.jobs.schemas import JobParams, JobRead
    from api.settings import ApiSettings
    from api.storage import ObjectStore
    from duolora.job_configs import JobConfig

__all__ = ["JobService", "Submission"]


class JobService:
    """Decides about jobs for their owners."""

    def __init__(
        self,
        settings: ApiSettings,
        sessions: sessionmaker[Session],
        store: ObjectStore,
        *,
        darkroom: Darkroom | None = None,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._gatherer = Gatherer(sessions, darkroom or Darkroom(settings.images))
        self._checker = Checker(sessions, self._gatherer)
        self.reader = JobReader(settings, sessions, store)
        self._orders = OrderBook(sessions, store, self.reader)
        self._ledger = Ledger.of(settings, sessions)

    def submit(self, caller: Caller, submission: Submission) -> Answer:
        """Check everything, store the pictures, write the job; a refusal or a failure leaves nothing behind.

        Raises:
            Forbidden: the key may not read what is named by id.
            InvalidParameters: a field or a picture is refused, `errors` names each; or the key is another request's.
            Conflict: the same request is in flight.
            QuotaExceeded: the account has as many jobs or bytes as it may.
            StoreError: the pictures cannot be stored.
            Unavailable: too many submissions are being read.
        """
        check_scopes(submission, caller)

        def mark() -> str:
            wished = submission.params.model_dump(mode="json", exclude_unset=True)
            return fingerprint("POST /jobs", wished, submission.marks())

        with self._ledger.once(caller.account_id, submission.idempotency_key, mark) as entry:
            if isinstance(entry, Replay):
                return again(entry)
            with wishes.pointing(submission.root):
                return self._submit(caller, submission, entry)

    def check(self, caller: Caller, submission: Submission) -> JobCheck:
        """Look at a submission; nothing of it is stored. Pictures that cannot be used are told of in the answer.

        Raises:
            Forbidden: the key may not read what is named by id.
            InvalidParameters: a field is refused, `errors` names each.
            Unavailable: too many submissions are being read.
        """
        check_scopes(submission, caller)
        with wishes.pointing(submission.root):
            config, ingredients = self._configure(caller, submission)
        copied = sum(ingredient.file.bytes for ingredient in ingredients)
        return self._checker.check(caller, submission, config.model_dump(mode="json"), plan(config), copied)

    def cancel(self, caller: Caller, job_id: uuid.UUID) -> JobRead:
        """Ask for a job to be given up. Asking again changes nothing.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
        """
        outlook = self.reader.outlook()
        with transaction(self._sessions) as session:
            if not repository.request_cancel(session, account_id=caller.account_id, job_id=job_id):
                raise listing.missing(session, account_id=caller.account_id, job_id=job_id)
            return self.reader.describe(session, caller, job_id, outlook).job

    def stop(self, caller: Caller, job_id: uuid.UUID) -> JobRead:
        """Ask for a job to end early, with what it has. Asking again changes nothing.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
            Conflict: there is nothing to be merged yet.
        """
        outlook = self.reader.outlook()
        with transaction(self._sessions) as session:
            requests.request_stop(session, account_id=caller.account_id, job_id=job_id)
            return self.reader.describe(session, caller, job_id, outlook).job

    def retry(
        self,
        caller: Caller,
        job_id: uuid.UUID,
        *,
        origin: str,
        traceparent: str | None,
        tracestate: str | None = None,
        request_id: str | None = None,
        key: str | None,
    ) -> Answer:
        """Make a job that tries an ended one again, from its checkpoints; one that does so already is returned.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
            Conflict: it cannot be tried again, or the same request is in flight.
            InvalidParameters: the key is another request's.
            QuotaExceeded: the account has as many jobs or bytes as it may.
            StoreError: its pictures cannot be copied.
        """
        with self._ledger.once(caller.account_id, key, lambda: fingerprint(f"POST /jobs/{job_id}/retry", {})) as entry:
            if isinstance(entry, Replay):
                return again(entry)
            with transaction(self._sessions) as session:
                found = requests.prepare_retry(session, account_id=caller.account_id, job_id=job_id)
            if not isinstance(found, requests.Retry):
                return self._orders.accept_existing(caller, found, entry)
            fresh_id = uuid7()
            job = Job(
                **found.fields | {"priority": min(found.fields["priority"], caller.max_priority), "retry_of": job_id},
                id=fresh_id,
                account_id=caller.account_id,
                self_url=origin.rstrip("/") + listing.path(fresh_id),
                traceparent=traceparent,
                tracestate=tracestate,
                request_id=request_id,
            )
            inputs = found.inputs(caller.account_id, fresh_id)
            order = Order(job=job, inputs=inputs, stages=found.stages, deadline=found.deadline, retry=found)
            return self._orders.place(caller, order, entry)

    def _submit(self, caller: Caller, submission: Submission, entry: Fresh | None) -> Answer:
        params = submission.params
        config, ingredients = self._configure(caller, submission)
        quotas.precheck(self._sessions, caller.account_id)
        job = _job(caller, uuid7(), config, submission)
        with tempfile.TemporaryDirectory(prefix="duolora-upload-") as folder:
            pictures = self._gatherer.gather(caller, submission, Path(folder))
            inputs = to_inputs(pictures, account_id=caller.account_id, job_id=job.id)
            order = Order(
                job=job,
                inputs=with_loras(inputs, ingredients, account_id=caller.account_id, job_id=job.id),
                stages=plan(config),
                deadline=None if params.deadline_seconds is None else timedelta(seconds=params.deadline_seconds),
                webhook=None if params.webhook_url is None else params,
            )
            return self._orders.place(caller, order, entry)

    def _configure(self, caller: Caller, submission: Submission) -> tuple[JobConfig, list[Ingredient]]:
        """Return the configuration of a submission whose parameters are good, and the LoRAs that it names."""
        ingredients = self._ingredients(caller, submission.params)
        config = kinds.resolve(
            submission.params,
            self._settings.base_models,
            self._settings.default_base_model,
            pictures=submission.counts,
            ingredients=ingredients,
        )
        check(submission, config, caller, self._settings)
        return config, ingredients

    def _ingredients(self, caller: Caller, params: JobParams) -> list[Ingredient]:
        """Return the LoRAs that a request names."""
        kinds.check_fields(params)
        if not params.kind.takes_loras:
            return []
        with transaction(self._sessions) as session:
            return find_ingredients(session, account_id=caller.account_id, params=params)


def _job(caller: Caller, job_id: uuid.UUID, config: JobConfig, submission: Submission) -> Job:
    params = submission.params
    wished: dict[str, Any] = params.model_dump(mode="json", exclude_unset=True, exclude={"webhook_secret"})
    return Job(
        id=job_id,
        account_id=caller.account_id,
        kind=params.kind,
        name=params.name,
        params=config.model_dump(mode="json"),
        params_version=SCHEMA_VERSION,
        request=wished,
        mock_outcome=(params.mock_outcome or MockOutcome.SUCCEED) if params.engine is EngineName.MOCK else None,
        priority=params.priority,
        retention_days=params.retention_days,
        webhook_url=params.webhook_url,
        self_url=submission.origin.rstrip("/") + listing.path(job_id),
        traceparent=submission.traceparent,
        tracestate=submission.tracestate,
        request_id=submission.request_id,
    )
