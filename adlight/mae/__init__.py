"""The article, in reading order: masking, tokens, network, objective, scorer, module."""
