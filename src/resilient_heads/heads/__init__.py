"""What replaces a classifier's last layer."""
