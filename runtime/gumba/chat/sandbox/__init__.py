"""Renders chat templates from untrusted files in bounded time and memory."""
