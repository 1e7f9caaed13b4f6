"""What finished detectors are taught by labels, a head and thresholds, and which of their anomalies are alike."""
