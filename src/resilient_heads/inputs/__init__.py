"""What a command line can name: a model, its weights, images in a folder or an array file."""
