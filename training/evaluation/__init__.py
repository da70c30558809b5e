"""Episodes on seeds of their own, and what their returns mean."""
