"""Looking at a run: diagnosis, films, playing by hand."""
