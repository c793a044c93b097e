"""Runs in NVFlare's environment: rounds of instant clients in NVFlare's simulator, whose log is printed."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes import NumpyFedAvgRecipe
from nvflare.recipe import SimEnv

num_clients, num_elements, num_rounds = map(int, sys.argv[1:])
with tempfile.TemporaryDirectory(prefix="fedquorum-bench-") as folder:
    model = Path(folder, "model.npy")
    np.save(model, np.random.default_rng(0).normal(scale=0.01, size=num_elements).astype(np.float32))
    recipe = NumpyFedAvgRecipe(
        name="rounds",
        initial_ckpt=str(model),
        min_clients=num_clients,
        num_rounds=num_rounds,
        train_script=str(Path(__file__).with_name("nvflare_client.py")),
    )
    recipe.execute(SimEnv(num_clients=num_clients, num_threads=num_clients, workspace_root=folder))
