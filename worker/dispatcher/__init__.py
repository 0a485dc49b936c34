"""Moves what is written in Postgres out into the world: hints, retries of lost work, webhooks; and tidies up.

Every duty runs in a thread of its own under an advisory lock, so any number of dispatchers may run: one is on duty,
the others stand by.
"""
