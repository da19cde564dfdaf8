"""Versions that lie in buckets: listed, fetched whole into a cache on this machine, and then loaded like all others."""
