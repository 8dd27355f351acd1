"""The field's own yardstick: TOFU's scores of unlearning, as open-unlearning defines them.

``formulas`` is arithmetic; ``asked`` is what one model says of one set; ``yardstick`` puts the
scores of a checkpoint together, beside those of a model that never saw what is to be forgotten.
"""

__all__: list[str] = []
