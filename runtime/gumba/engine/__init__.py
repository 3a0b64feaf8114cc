"""Continuous batching: sequences, the scheduler that fills each step, and the engine that runs the steps in its thread."""
