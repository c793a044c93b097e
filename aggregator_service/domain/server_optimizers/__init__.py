"""How the mean delta becomes a step of the global model: init/step pairs over explicit, stored state.

Each module has `slots` (the names of the arrays it keeps from round to round, each as large as the model), `init`
(their values before the first round) and `step`. Everything is float64, whatever the model's type: the model is the
only thing that is rounded to its own type, once a round. An element always goes through the same operations in the same
order, and no element looks at another one, so any tiling gives the same bits.
"""
