"""Detectors by distillation: a small network learns to mimic a frozen one on normal images, and fails on anomalies."""
