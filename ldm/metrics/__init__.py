"""The quality of reconstructions and generated images, in numbers. Pure functions of images or of their features.

Legend: N, M images; D features of each; features are float32 as extracted and float64 in every formula.
"""
