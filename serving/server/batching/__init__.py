"""Requests that share a run."""
