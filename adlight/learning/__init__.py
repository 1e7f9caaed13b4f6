"""Learning from labels on top of a finished detector (a head and thresholds), and clustering of its anomalies."""
