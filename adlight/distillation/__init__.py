"""Detectors by distillation: a small network learns a frozen one on normal images, and fails on others."""
