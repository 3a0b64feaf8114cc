from support.fixtures import make_llm, rows

__all__ = ["make_llm", "rows"]
