"""Requests become steps here: sequences, the scheduler that fills each step, and the engine that runs it."""
