"""Functions: one trigger per file, none imports another. functions-framework loads each file by its path."""
