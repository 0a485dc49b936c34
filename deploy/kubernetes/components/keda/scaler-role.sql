-- What KEDA's question needs to see, and no more. Once, by psql as the database's owner:
--   psql "$URL" --set=password="$(openssl rand -hex 24)" --file=scaler-role.sql
CREATE ROLE duolora_scaler LOGIN CONNECTION LIMIT 5 PASSWORD :'password';
GRANT SELECT (id, max_running_jobs) ON accounts TO duolora_scaler;
GRANT SELECT (id, account_id, state, started_at, finished_at, deadline_at, cancel_requested_at) ON jobs TO duolora_scaler;
GRANT SELECT (job_id, account_id, state, runnable_at, priority, queued_at, worker_id) ON stages TO duolora_scaler;
