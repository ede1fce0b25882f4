"""The controller service: jobs over REST, a live schedule, overrides that can be trusted.

`hdet up` starts it, `hdet_service.client` talks to it. What it decides is `hdet_ray.core.decide`'s word; the
service adds nothing to it.
"""
