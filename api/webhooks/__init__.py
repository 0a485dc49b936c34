"""Telling the caller's server that a job has ended: rows, signatures, guarded delivery."""
