"""Shared parts of all detectors: scoring, calibration and testing, regions, export."""
