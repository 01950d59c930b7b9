"""models: MVAE, MoPoE, MVTCAE and mmJSD on digits, the energy prior against a plain one and mixtures, three seeds.

The base preset with each model's own defaults, Normal experts and a Normal p_0, which their formulas want. Nothing was
chosen by model.
"""

from __future__ import annotations

from pathlib import Path

from bench.experiments.tables import Table

RESULTS = Path(__file__).parents[1] / "results" / "models.csv"
_NORMAL = ("model.posterior=normal", "prior.reference=normal")
TABLE = Table(
    RESULTS,
    {name: ("digits-base", (f"model.name={name}", *_NORMAL)) for name in ("mvae", "mopoe", "mvtcae", "mmjsd")},
    ("prior.name=normal",),
)
run, report = TABLE.run, TABLE.report
