"""Turns runnable stages into artifacts."""
