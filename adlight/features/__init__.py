"""Features of frozen pretrained networks."""
