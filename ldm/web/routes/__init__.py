"""Routes of the page, a file for what they are about."""
