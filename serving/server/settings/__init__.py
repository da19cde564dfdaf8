"""What the server is started with: flags, text protos, its own log."""
