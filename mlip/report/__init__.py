"""What a run shows: learning curves, parity plots, tables."""
