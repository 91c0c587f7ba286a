"""What one trial yields, and trials as columns and files."""
