"""Federated training: sites train by turns on images of their own, and a server averages their weights."""
