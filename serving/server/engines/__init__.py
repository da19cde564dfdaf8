"""Engines: what runs one loaded version of a model."""
