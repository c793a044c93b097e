"""How the mean delta becomes a step of the global model: init/step pairs over explicit, stored state."""
