"""The protocols: one file for each surface of gRPC and REST."""
