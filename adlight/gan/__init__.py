"""The thesis, in reading order: networks, objectives, module, inversion."""
