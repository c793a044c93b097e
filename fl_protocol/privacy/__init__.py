"""The arithmetic of differential privacy that both sides must agree on: noise, the integer grid, and accounting."""
