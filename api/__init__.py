"""The HTTP front end and the system of record. Never imports torch."""
