"""A Flower app: clients that train in no time, and a server that prints when each round begins."""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, _context: Context) -> Message:
    """Sends the model back."""
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


class _Timed(FedAvg):
    def configure_train(self, *given: object, **named: object) -> object:
        print(f"round begins {time.time()}", flush=True)
        return super().configure_train(*given, **named)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Trains for some rounds."""
    values = np.random.default_rng(0).normal(scale=0.01, size=context.run_config["elements"]).astype(np.float32)
    clients = int(context.run_config["clients"])
    strategy = _Timed(fraction_evaluate=0.0, min_available_nodes=clients, min_train_nodes=clients)
    strategy.start(grid=grid, initial_arrays=ArrayRecord([values]), num_rounds=context.run_config["rounds"])
    print(f"round begins {time.time()}", flush=True)
