"""Observers: deleting every one changes no number."""
