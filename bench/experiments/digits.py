"""digits: the energy prior against a separately trained plain prior and Gaussian mixtures, two models, three seeds."""

from __future__ import annotations

from pathlib import Path

from bench.experiments.tables import Table

RESULTS = Path(__file__).parents[1] / "results" / "digits.csv"
TABLE = Table(RESULTS, {"generalised": ("digits", ()), "base": ("digits-base", ())}, ("prior.name=laplace",))
run, report = TABLE.run, TABLE.report
