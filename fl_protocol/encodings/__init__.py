"""How an update's deltas travel: one module for each kind of encoding, bytes to deltas while they stream."""
