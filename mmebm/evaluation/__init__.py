"""What a trained model is worth: coherence, Frechet distances, probes, and the figures that show it."""

from __future__ import annotations

from mmebm.evaluation.classifiers import Classifiers, load_or_train
from mmebm.evaluation.coherence import (
    Collapse,
    JointResult,
    class_counts,
    class_entropy,
    collapse,
    cross_coherence,
    joint_coherence,
    joint_result,
)
from mmebm.evaluation.cross import CrossResult, cross_by_subset
from mmebm.evaluation.frechet import frechet_distance
from mmebm.evaluation.intervals import bootstrap_interval
from mmebm.evaluation.likelihood import LogLikelihood, conditional_log_likelihood, joint_log_likelihood
from mmebm.evaluation.probe import ProbeResult, linear_probe

__all__ = [
    "Classifiers",
    "Collapse",
    "CrossResult",
    "JointResult",
    "LogLikelihood",
    "ProbeResult",
    "bootstrap_interval",
    "class_counts",
    "class_entropy",
    "collapse",
    "conditional_log_likelihood",
    "cross_by_subset",
    "cross_coherence",
    "frechet_distance",
    "joint_coherence",
    "joint_log_likelihood",
    "joint_result",
    "linear_probe",
    "load_or_train",
]
