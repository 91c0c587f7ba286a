"""What the options of the command line name: models, checkpoints and images."""
