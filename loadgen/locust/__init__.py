"""Locust as a front end: its users, workers and web page, with our payloads, decoder, schedule and joules."""
