"""How the demo model and its stories are made: the grammar, rows without end, the training, and the rows that are shipped.

`python -m benchmarks.demo_data FILE` makes rows that the package does not ship, `python -m benchmarks.demo_data.shipped`
writes those that it does, `python -m benchmarks.demo_data.train` trains the model.
"""

from benchmarks.demo_data.rows import entropy, rules, stories, surprisal, tokens

__all__ = ["entropy", "rules", "stories", "surprisal", "tokens"]
