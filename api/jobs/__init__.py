"""Jobs and their stages: the noun that everything else serves."""
