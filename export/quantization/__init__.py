"""Smaller graphs of a float graph: made, measured, and published as versions of their own where they gain."""
