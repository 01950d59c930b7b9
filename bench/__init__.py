"""Measurements: cases of operators against contenders, and recorded training experiments; one CSV each in results."""
