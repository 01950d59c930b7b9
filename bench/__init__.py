"""Recorded experiments: each writes one CSV under bench/results, from which tables in the documentation are made."""
