"""What all detectors share: scoring, calibration and testing, regions, export."""
