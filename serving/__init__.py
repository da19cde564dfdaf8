"""Serving: the wire protocol, the model server and the gateway."""
