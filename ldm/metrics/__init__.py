"""How good reconstructions and generated pictures are, in numbers. Pure functions of pictures or of their features.

Legend: N, M pictures; D features of each; features are float32 as extracted and float64 in every formula.
"""
