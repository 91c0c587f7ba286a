"""What a class means, as vectors."""
