"""Data sets, their data module, and defects pasted for validation."""
