"""What each command does, as a job with `prepare`, `measure` and `finish`, run without a command line."""
