"""What a campaign was told, what it found, and the files that keep both."""
