"""Many ablations over many images: which heads, layers and edges carry the grounding."""
