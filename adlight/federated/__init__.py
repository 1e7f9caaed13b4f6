"""Federated training: each site trains on its own images, and a server averages the weights."""
