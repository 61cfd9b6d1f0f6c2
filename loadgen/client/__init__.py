"""Sends requests to a server, and takes the time of each token of the answers."""

DEFAULT_URL = "http://localhost:8000/v1"
"""The server of a run that names none."""
