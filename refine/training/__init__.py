"""Training a refiner."""
