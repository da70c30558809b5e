"""Environments with known answers, and their exact models."""
