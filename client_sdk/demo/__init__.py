"""The demo: a real server, ten clients that train on MNIST over HTTP, and what came of it."""
