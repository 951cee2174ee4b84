"""What the mechanisms cost and whether they help, measured and kept in ``results``; the pages made of that."""
