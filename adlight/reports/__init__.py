"""Tables and pages over finished runs."""
