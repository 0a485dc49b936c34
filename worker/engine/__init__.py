"""The engine process: the only part of the worker that imports torch."""
