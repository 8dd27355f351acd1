"""From data to an edit, one road for every method: a job is read, a change found, saved, applied.

A :class:`~weightsurgery.unlearning.job.Job` is all that decides a vector; its method finds the
change (:mod:`weightsurgery.unlearning.method`), :mod:`weightsurgery.unlearning.saving` writes that,
and :mod:`weightsurgery.unlearning.run` takes a job from the one end to the other.
"""

__all__: list[str] = []
