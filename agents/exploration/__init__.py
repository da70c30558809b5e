"""Plan2Explore: an ensemble whose disagreement is the reward."""
