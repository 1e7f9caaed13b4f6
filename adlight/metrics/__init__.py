"""Exact, mergeable metrics."""
