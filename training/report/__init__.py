"""Reports on a run: diagnosis, videos, and playing by hand."""
