"""Clients: Python clients and the command line."""
