"""The controller service. Not built yet in this release: nothing in this package runs.

What exists is the library, `hdet_ray`, which decides locally on rank 0 and needs no service.
"""
