"""What a run takes on given devices, known before they are paid for.

``phases`` lists the programs that a config runs, ``measure`` compiles them without
running them, ``programs`` reads what they move, ``meshes`` looks for a better mesh.
"""
