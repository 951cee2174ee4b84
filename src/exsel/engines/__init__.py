"""The mechanisms in other people's training engines."""
