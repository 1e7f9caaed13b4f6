"""What labels teach a finished detector: a small head on its map and features, and thresholds that they support."""
