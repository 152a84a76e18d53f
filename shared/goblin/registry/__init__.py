"""Model versions, the production pointer, and bringing model servers in line with it."""
