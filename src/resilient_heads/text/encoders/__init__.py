"""Text encoders: sentences in, vectors out. One module an implementation; ``named`` knows the short names."""
