"""Everything that computes. The stages meet on disk and never import each other."""
