"""What the options of the command line name: models and images."""
