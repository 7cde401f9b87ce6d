"""Published protocols from a model's answers to scores: maps first, then masks and scores, each kept on disk."""
