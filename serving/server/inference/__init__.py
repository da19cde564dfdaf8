"""Predict, classify and regress over one core, and the trace of a request."""
