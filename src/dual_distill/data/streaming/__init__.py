"""Image-text pairs that are read as they are trained on."""
