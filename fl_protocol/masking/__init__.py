"""The pure half of secure aggregation, which server and client share: `flsa/v1`, double masking in a ring of integers.

Bonawitz et al. 2017 on a complete graph, Bell et al. 2020 on a sparse one. Nothing here does I/O or draws randomness:
keys, seeds, nonces and coefficients come in as arguments. `ring` and `graph` need numpy alone; the other modules need
the package cryptography of the extra [privacy].
"""
