"""Answers many recordings in one run. The results file lets a stopped run continue."""
