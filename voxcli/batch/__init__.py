"""Many recordings answered in one run, whose results file is also where it goes on after a stop."""
