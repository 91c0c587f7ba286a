"""Text encoders, and the embedding of classes with them."""
