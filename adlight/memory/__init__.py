"""Predictors that memorize training features; nothing is trained by gradient."""
