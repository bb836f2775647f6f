"""Attention blocks. Pure torch: install nothing else to use them."""

from shared.attention.reverse import ReverseAttention

__all__ = ["ReverseAttention"]
