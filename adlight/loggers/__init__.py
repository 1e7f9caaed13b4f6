"""Loggers: curves as CSV files, and Weights & Biases."""
