"""The GAN detector. Read networks, residual, objectives, module, terms, inversion, scorer, detector, encoder."""
