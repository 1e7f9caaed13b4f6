"""Detection by distillation: a network that learned to mimic a frozen network on normal images fails on anomalies."""
