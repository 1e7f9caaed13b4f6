"""Data sets, their data module, and pseudo-anomalies for validation."""
