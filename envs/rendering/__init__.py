"""Images of environments: rendered frames as observations, charts of vectors, drawing without a display."""
