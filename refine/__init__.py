"""High-resolution mask refinement: an image and a coarse mask in, a precise mask out."""
