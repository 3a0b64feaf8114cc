"""The LLM class: requests in, outputs out."""
