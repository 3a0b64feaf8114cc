"""Architectures, one file each, named as GGUF's ``general.architecture``."""
