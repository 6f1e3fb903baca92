"""What is looked at: pictures, folders of them, and data sets."""
