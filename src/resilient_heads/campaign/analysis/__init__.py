"""What several campaigns say together: compare two models, plan the next campaign from a pilot."""
