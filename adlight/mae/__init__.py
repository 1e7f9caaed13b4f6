"""The article's masked autoencoder; reading order: masking, tokens, network, objective, scorer, module."""
