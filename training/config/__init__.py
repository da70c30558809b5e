"""The settings: dataclasses, their reading from YAML and the command line, and what is decided from them."""
