"""The embedded stack: real Postgres, Valkey and S3 server from wheels, and our own processes, in one command."""
