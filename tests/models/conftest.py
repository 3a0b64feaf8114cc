from support.fixtures import rows

__all__ = ["rows"]
