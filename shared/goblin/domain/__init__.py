"""Frozen nouns with their units; nothing here touches the outside."""
