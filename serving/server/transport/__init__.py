"""The two transports: listeners, TLS, HTTP and gRPC framing."""
