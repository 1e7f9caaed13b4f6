"""Data sets, their data module, and synthetic anomalies for validation."""
