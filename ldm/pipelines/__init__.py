"""Trained parts put to use: no training, no files but pictures."""
