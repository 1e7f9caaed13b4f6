"""Detectors that remember training features: nothing is trained by gradient."""
