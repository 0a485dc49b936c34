"""What a service needs that loses nothing: deadlines, retries, stops, quotas, logs, workers, webhook endpoints.

Adds only: the code before it goes on working, as its stages get the new columns from a trigger.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INHERIT_FUNCTION = """
CREATE FUNCTION inherit_from_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.account_id IS NULL OR NEW.priority IS NULL OR NEW.queued_at IS NULL THEN
        SELECT jobs.account_id, jobs.priority, jobs.created_at INTO NEW.account_id, NEW.priority, NEW.queued_at
        FROM jobs WHERE jobs.id = NEW.job_id;
    END IF;
    RETURN NEW;
END
$$
"""

INHERIT_TRIGGER = """
CREATE TRIGGER stages_inherit BEFORE INSERT ON stages
FOR EACH ROW EXECUTE FUNCTION inherit_from_job()
"""

NOTIFY_FUNCTION = """
CREATE FUNCTION notify_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('duolora_events', NEW.job_id::text);
    RETURN NULL;
END
$$
"""

NOTIFY_TRIGGER = """
CREATE TRIGGER events_notify AFTER INSERT ON events
FOR EACH ROW EXECUTE FUNCTION notify_event()
"""

STORED_BYTES = """
UPDATE accounts SET stored_bytes =
    coalesce((SELECT sum(job_images.bytes) FROM job_images JOIN jobs ON jobs.id = job_images.job_id
              WHERE jobs.account_id = accounts.id), 0)
    + coalesce((SELECT sum(artifacts.bytes) FROM artifacts JOIN jobs ON jobs.id = artifacts.job_id
                WHERE jobs.account_id = accounts.id), 0)
"""

JOB_ENDPOINTS = """
INSERT INTO webhook_endpoints (id, account_id, job_id, url)
SELECT gen_random_uuid(), account_id, id, webhook_url FROM jobs WHERE webhook_url IS NOT NULL
"""


def upgrade() -> None:
    _extend_accounts()
    _extend_jobs()
    _extend_stages()
    _add_logs_and_workers()
    _add_idempotency_keys()
    _add_webhook_endpoints()
    _extend_webhook_deliveries()
    _add_webhook_attempts()
    op.execute(NOTIFY_FUNCTION)
    op.execute(NOTIFY_TRIGGER)


def _extend_accounts() -> None:
    op.add_column("accounts", sa.Column("max_running_jobs", sa.Integer(), nullable=True))
    op.add_column("accounts", sa.Column("max_queued_jobs", sa.Integer(), nullable=True))
    op.add_column("accounts", sa.Column("max_stored_bytes", sa.BigInteger(), nullable=True))
    op.add_column("accounts", sa.Column("stored_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.execute(STORED_BYTES)


def _extend_jobs() -> None:
    op.add_column("jobs", sa.Column("deadline_passed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("stop_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("retry_of", sa.Uuid(), nullable=True))
    op.create_foreign_key(op.f("fk_jobs_retry_of"), "jobs", "jobs", ["retry_of"], ["id"], ondelete="SET NULL")
    unfinished = sa.text("finished_at IS NULL")
    op.create_index("ix_jobs_unfinished", "jobs", ["account_id", "state"], postgresql_where=unfinished)
    op.create_index(
        "ix_jobs_queue",
        "jobs",
        [sa.literal_column("priority DESC"), "created_at", "id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index("ix_jobs_deadline", "jobs", ["deadline_at"], postgresql_where=unfinished)
    op.create_index("ix_jobs_finished", "jobs", ["finished_at"], postgresql_where=sa.text("finished_at IS NOT NULL"))
    op.create_index("ix_jobs_retry_of", "jobs", ["retry_of"], postgresql_where=sa.text("retry_of IS NOT NULL"))


def _extend_stages() -> None:
    op.add_column("stages", sa.Column("account_id", sa.Uuid(), nullable=True))
    op.add_column("stages", sa.Column("priority", sa.Integer(), nullable=True))
    op.add_column("stages", sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(INHERIT_FUNCTION)
    op.execute(INHERIT_TRIGGER)
    op.execute(
        "UPDATE stages SET account_id = jobs.account_id, priority = jobs.priority, queued_at = jobs.created_at "
        "FROM jobs WHERE jobs.id = stages.job_id"
    )
    for name in ("account_id", "priority", "queued_at"):
        op.alter_column("stages", name, nullable=False)
    op.create_foreign_key(
        op.f("fk_stages_account_id"), "stages", "accounts", ["account_id"], ["id"], ondelete="CASCADE"
    )
    op.add_column("stages", sa.Column("weight", sa.Float(), nullable=True))
    op.add_column(
        "stages",
        sa.Column("failure_counts", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
    )
    op.add_column("stages", sa.Column("memory_profile", sa.String(16), server_default="full", nullable=False))
    op.create_check_constraint(op.f("ck_stages_memory_profile"), "stages", "memory_profile IN ('full', 'small')")
    op.add_column("stages", sa.Column("stopped_early", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("stages", sa.Column("reuse_key", sa.Text(), nullable=True))
    op.add_column("stages", sa.Column("reused_job_id", sa.Uuid(), nullable=True))
    op.create_index(
        "ix_stages_ready",
        "stages",
        ["account_id", sa.literal_column("priority DESC"), "queued_at", "job_id", "ordinal"],
        postgresql_where=sa.text("state = 'runnable'"),
    )
    op.create_index("ix_stages_busy", "stages", ["account_id"], postgresql_where=sa.text("state = 'running'"))
    op.create_index(
        "ix_stages_reuse", "stages", ["account_id", "reuse_key"], postgresql_where=sa.text("state = 'succeeded'")
    )
    op.add_column("stage_attempts", sa.Column("failure_class", sa.String(16), nullable=True))
    op.add_column("stage_attempts", sa.Column("resumed_step", sa.Integer(), nullable=True))
    op.create_check_constraint(
        op.f("ck_stage_attempts_failure_class"),
        "stage_attempts",
        "failure_class IN ('caller', 'memory', 'environment', 'death')",
    )


def _add_logs_and_workers() -> None:
    op.create_table(
        "job_logs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_logs_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_logs")),
    )
    op.create_index("ix_job_logs_job", "job_logs", ["job_id", "id"])
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("device", sa.Text(), nullable=True),
        sa.Column("engine_version", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state IN ('idle', 'busy', 'stopping')", name=op.f("ck_workers_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )


def _add_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("token", sa.Uuid(), nullable=False),
        sa.Column("locked_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("response", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(status IS NULL) = (response IS NULL)", name=op.f("ck_idempotency_keys_outcome")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_idempotency_keys_account_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_idempotency_keys_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("account_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])
    op.create_index(op.f("ix_idempotency_keys_job_id"), "idempotency_keys", ["job_id"])


def _add_webhook_endpoints() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("secret", sa.Text(), nullable=True),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_secret_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.String(16), server_default="enabled", nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(state = 'disabled') = (disabled_at IS NOT NULL)", name=op.f("ck_webhook_endpoints_disabled")
        ),
        sa.CheckConstraint("state IN ('enabled', 'disabled')", name=op.f("ck_webhook_endpoints_state")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_webhook_endpoints_account_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_webhook_endpoints_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_index("ix_webhook_endpoints_account_id", "webhook_endpoints", ["account_id", "job_id"])
    op.create_index(op.f("ix_webhook_endpoints_job_id"), "webhook_endpoints", ["job_id"])
    op.execute(JOB_ENDPOINTS)


def _extend_webhook_deliveries() -> None:
    op.alter_column("webhook_deliveries", "job_id", nullable=True)
    op.alter_column("webhook_deliveries", "event_id", nullable=True)
    op.add_column("webhook_deliveries", sa.Column("endpoint_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_webhook_deliveries_endpoint_id"),
        "webhook_deliveries",
        "webhook_endpoints",
        ["endpoint_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.add_column(
        "webhook_deliveries", sa.Column("retries", sa.Boolean(), server_default=sa.text("true"), nullable=False)
    )
    op.add_column("webhook_deliveries", sa.Column("replay_of", sa.Uuid(), nullable=True))
    op.create_index(op.f("ix_webhook_deliveries_event_id"), "webhook_deliveries", ["event_id"])
    op.create_index(
        "ix_webhook_deliveries_newest",
        "webhook_deliveries",
        ["endpoint_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
    )


def _add_webhook_attempts() -> None:
    op.create_table(
        "webhook_attempts",
        sa.Column("delivery_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["webhook_deliveries.id"],
            name=op.f("fk_webhook_attempts_delivery_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("delivery_id", "attempt", name=op.f("pk_webhook_attempts")),
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER events_notify ON events")
    op.execute("DROP FUNCTION notify_event")
    op.drop_table("webhook_attempts")
    op.drop_index("ix_webhook_deliveries_newest", table_name="webhook_deliveries")
    op.drop_index(op.f("ix_webhook_deliveries_event_id"), table_name="webhook_deliveries")
    for name in ("replay_of", "retries", "endpoint_id"):
        op.drop_column("webhook_deliveries", name)
    op.execute("DELETE FROM webhook_deliveries WHERE job_id IS NULL OR event_id IS NULL")
    op.alter_column("webhook_deliveries", "event_id", nullable=False)
    op.alter_column("webhook_deliveries", "job_id", nullable=False)
    for table in ("webhook_endpoints", "idempotency_keys", "workers", "job_logs"):
        op.drop_table(table)
    for name in ("failure_class", "resumed_step"):
        op.drop_column("stage_attempts", name)
    op.execute("DROP TRIGGER stages_inherit ON stages")
    op.execute("DROP FUNCTION inherit_from_job")
    for name in (
        "reused_job_id",
        "reuse_key",
        "stopped_early",
        "memory_profile",
        "failure_counts",
        "weight",
        "queued_at",
        "priority",
        "account_id",
    ):
        op.drop_column("stages", name)  # with the indexes and constraints that name it
    for name in ("ix_jobs_unfinished", "ix_jobs_queue", "ix_jobs_deadline", "ix_jobs_finished"):
        op.drop_index(name, table_name="jobs")
    for name in ("retry_of", "stop_requested_at", "deadline_passed_at"):
        op.drop_column("jobs", name)
    for name in ("stored_bytes", "max_stored_bytes", "max_queued_jobs", "max_running_jobs"):
        op.drop_column("accounts", name)
