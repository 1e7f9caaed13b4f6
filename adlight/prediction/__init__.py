"""Predictions for many images, by this process or by actors of Ray."""
