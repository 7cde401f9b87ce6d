"""Data sets with true masks, read as examples."""
