"""The service's verbs of the `duolora` command: what a client does, from a terminal."""
