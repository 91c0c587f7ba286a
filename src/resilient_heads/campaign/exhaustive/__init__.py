"""Every single flip of a head, executed or in closed form."""
