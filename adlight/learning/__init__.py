"""Learn a head and thresholds from labels on top of a finished detector, and cluster its anomalies."""
