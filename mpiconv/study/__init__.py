"""What to learn from the measurements and the equations."""
