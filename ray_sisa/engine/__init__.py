"""The engine: chains of stages handed to workers, and a loop that sees them to their end."""
