"""Suites that Gymnasium does not hold, each behind an extra that pip installs."""
