"""Distributed SISA training on Ray whose models forget exactly."""

__version__ = "0.1.0"
