"""The papers' experiments, and the questions of their readers, run again and set beside what was published."""
