"""A client of NVFlare that trains in no time."""

import nvflare.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    flare.send(flare.FLModel(params=model.params, params_type=model.params_type, metrics={"loss": 1.0}))
