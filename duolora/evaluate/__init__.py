"""The benchmark: an evaluator network, the suite whose truth is known, and the tables of every method."""
