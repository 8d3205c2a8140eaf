"""One file, one algorithm. Files here never import one another."""
