"""Write faults, verify them, undo them."""
