"""Settings: the config dataclasses, how they are read from YAML and the command line, and how `auto` is resolved."""
