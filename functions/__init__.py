"""Doorways: one trigger per file, strangers to each other. functions-framework loads each by its path."""
