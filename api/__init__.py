"""The HTTP front end and the system of record: rows, object keys, outbox. Torch-free, always."""
