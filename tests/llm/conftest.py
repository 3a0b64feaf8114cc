from support.fixtures import make_llm

__all__ = ["make_llm"]
