"""From data to an edit, by the same steps for every method: read, find a change, save it, apply it.

A :class:`~weightsurgery.unlearning.job.Job` is all that determines a vector; its method finds the
change (:mod:`weightsurgery.unlearning.method`), :mod:`weightsurgery.unlearning.saving` writes that,
and :mod:`weightsurgery.unlearning.run` runs all steps.
"""

__all__: list[str] = []
