"""Callbacks that only observe: removing them all changes no number."""
