"""What can be typed after each command; read before JAX is imported.

Help and a mistyped option so need a tenth of a second.
"""
