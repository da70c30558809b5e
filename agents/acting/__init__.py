"""Parts that all behaviours share: their interface, policy distributions and exploration noise."""
