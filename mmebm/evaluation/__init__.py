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
from mmebm.evaluation.frechet import frechet_distance
from mmebm.evaluation.likelihood import LogLikelihood, joint_log_likelihood
from mmebm.evaluation.probe import ProbeResult, linear_probe

__all__ = [
    "Classifiers",
    "Collapse",
    "JointResult",
    "LogLikelihood",
    "ProbeResult",
    "class_counts",
    "class_entropy",
    "collapse",
    "cross_coherence",
    "frechet_distance",
    "joint_coherence",
    "joint_log_likelihood",
    "joint_result",
    "linear_probe",
    "load_or_train",
]
