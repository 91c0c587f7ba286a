"""Follow a fault on a small window of a feature map."""
