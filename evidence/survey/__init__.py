"""The evidence for upgrades: a small model of every type in the installed transformers, upgraded and verified."""
