"""The gateway: the domain API of every model, and the web page."""
