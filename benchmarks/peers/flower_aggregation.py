"""Runs in Flower's environment: decodes so many updates and takes their mean, as Flower's server does it.

Prints a line of JSON: the version, the seconds of each repetition and the peak memory in MiB.
"""

import json
import resource
import sys
import time
from importlib.metadata import version

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Message
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

num_updates, num_elements, repetitions = map(int, sys.argv[1:])
values = np.random.default_rng(0).normal(scale=0.01, size=num_elements).astype(np.float32)


def _update(number: int) -> bytes:
    record = RecordDict(
        {
            "arrays": ArrayRecord([np.roll(values, number)]),
            "metrics": MetricRecord({"num-examples": number + 1}),
        }
    )
    return recorddict_to_proto(record).SerializeToString()


received = [_update(number) for number in range(num_updates)]
seconds = []
for _ in range(repetitions):
    begin = time.perf_counter()
    aggregate_arrayrecords([recorddict_from_proto(Message.FromString(each)) for each in received], "num-examples")
    seconds.append(time.perf_counter() - begin)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"version": version("flwr"), "seconds": seconds, "peak_mebibytes": peak}))
