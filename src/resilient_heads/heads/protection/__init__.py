"""Range restriction, ABFT checksum and median vote for heads."""
