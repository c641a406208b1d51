"""Attention: one signature (attend.py), several ways to compute it."""
