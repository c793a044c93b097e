"""Runs in NVFlare's environment: decodes so many updates and takes their mean, as NVFlare's server does it.

Prints a line of JSON: the version, the seconds of each repetition and the peak memory in MiB.
"""

import json
import resource
import sys
import time
from importlib.metadata import version

import numpy as np
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.fuel.utils import fobs

num_updates, num_elements, repetitions = map(int, sys.argv[1:])
values = np.random.default_rng(0).normal(scale=0.01, size=num_elements).astype(np.float32)
fobs.register(NumpyArrayDecomposer)
received = [fobs.dumps({"weight": np.roll(values, number)}) for number in range(num_updates)]
seconds = []
for _ in range(repetitions):
    begin = time.perf_counter()
    helper = WeightedAggregationHelper()
    for number, each in enumerate(received):
        helper.add(fobs.loads(each), number + 1, f"client-{number}", 0)
    helper.get_result()
    seconds.append(time.perf_counter() - begin)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"version": version("nvflare"), "seconds": seconds, "peak_mebibytes": peak}))
