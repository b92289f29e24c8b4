"""Fast math on plain arrays; knows nothing of refine."""
