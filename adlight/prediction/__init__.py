"""Prediction for many images, in this process or by Ray actors."""
