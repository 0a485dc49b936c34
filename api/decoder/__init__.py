"""Strangers' pictures are decoded here: in a process that knows nothing, may do little and lives for one picture."""
