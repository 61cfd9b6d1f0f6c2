"""Locust as a front end: its users, workers and web page, with loadgen's payloads, decoder, schedule and joules."""
