"""What is seen of the requests: metrics, request lines and the request log."""
