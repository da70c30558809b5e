"""Suites of environments outside Gymnasium. Each needs an optional extra of this package."""
