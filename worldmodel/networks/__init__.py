"""Networks and the distributions that they output."""
