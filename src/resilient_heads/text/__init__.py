"""What a class means: descriptions, text encoders, class embeddings. Knows nothing of faults."""
