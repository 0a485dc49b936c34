"""Ways to run the service."""
