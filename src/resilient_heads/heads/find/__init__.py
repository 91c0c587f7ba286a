"""Where a model keeps its classifiers."""
