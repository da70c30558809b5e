"""Plan2Explore: exploration with the disagreement of an ensemble as the reward."""
