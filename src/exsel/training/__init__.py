"""Training: one run, and several side by side."""
