"""Files that callers bring before they submit a job with them."""
