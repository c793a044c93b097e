"""The loops of the exact sum, compiled for the processor they run on."""
