"""What a rank computes of a unit, by the fastest means that this torch and processor have."""
