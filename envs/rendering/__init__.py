"""Pictures of environments: drawn frames as observations, charts of vectors, screens without a display."""
