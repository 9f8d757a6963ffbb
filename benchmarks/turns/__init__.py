"""Labelled recordings of turns, and what detects their ends; for `benchmarks.end_of_turn`."""
