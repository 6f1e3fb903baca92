"""What the devices and links are, measured."""
