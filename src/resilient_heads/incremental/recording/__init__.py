"""What a forward pass did: operations, memory, and where each image lies."""
