"""Configurations to begin with, data for them, and a network of one's own: see the README."""
