"""The actor-critic that learns in imagination (Dreamer V1-V3), and its returns."""
