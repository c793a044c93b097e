"""FedQuorum's client SDK: take part in federated training over HTTP, or run it.

`participate` and a trainer are what a client needs, `Operator` is what runs the training; `client_sdk.torch` has both
ends for PyTorch and `client_sdk.testing` a server for tests. `simulate` runs a whole federation on one machine, over
data that `client_sdk.partitioning` splits. A name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from client_sdk.blocking import BlockingOperator, participate_blocking
    from client_sdk.client import AggregatorClient
    from client_sdk.config import Limits
    from client_sdk.errors import (
        FedQuorumError,
        InsecureTransportError,
        ManifestError,
        ManifestForkError,
        PolicyError,
        PrivacyBudgetError,
        PrivacyClaimError,
        RunFailedError,
        ServerError,
        SessionRefusedError,
        TrainerError,
        TranscriptError,
        TransportError,
        UntrustedAnswerError,
        UsageError,
    )
    from client_sdk.masking.trust import PeerTrust, load_roster
    from client_sdk.operator import Enrolment, Operator
    from client_sdk.participant import participate
    from client_sdk.performer import Participation
    from client_sdk.privacy.policy import PrivacyPolicy, load_policy
    from client_sdk.session.progress import Progress
    from client_sdk.session.work import (
        Evaluator,
        ExamplePrivacy,
        TrainedDelta,
        TrainedModel,
        Trainer,
        TrainingResult,
        TrainingTask,
    )
    from client_sdk.simulation import SimulatedRound, Simulation, simulate
    from client_sdk.transfer import StoredModel
    from fl_protocol.arrays import RawTensor, Tensor
    from fl_protocol.runs import Run, RunSpec
    from fl_protocol.specs.rounds import BufferedRoundSpec, RoundSpec
    from fl_protocol.specs.training import TrainingSpec
    from fl_protocol.tasks import EvaluationReport

__all__ = [
    "AggregatorClient",
    "BlockingOperator",
    "BufferedRoundSpec",
    "Enrolment",
    "EvaluationReport",
    "Evaluator",
    "ExamplePrivacy",
    "FedQuorumError",
    "InsecureTransportError",
    "Limits",
    "ManifestError",
    "ManifestForkError",
    "Operator",
    "Participation",
    "PeerTrust",
    "PolicyError",
    "PrivacyBudgetError",
    "PrivacyClaimError",
    "PrivacyPolicy",
    "Progress",
    "RawTensor",
    "RoundSpec",
    "Run",
    "RunFailedError",
    "RunSpec",
    "ServerError",
    "SessionRefusedError",
    "SimulatedRound",
    "Simulation",
    "StoredModel",
    "Tensor",
    "TrainedDelta",
    "TrainedModel",
    "Trainer",
    "TrainerError",
    "TrainingResult",
    "TrainingSpec",
    "TrainingTask",
    "TranscriptError",
    "TransportError",
    "UntrustedAnswerError",
    "UsageError",
    "load_policy",
    "load_roster",
    "participate",
    "participate_blocking",
    "simulate",
]

_HOMES: Final = {
    "client_sdk.blocking": ("BlockingOperator", "participate_blocking"),
    "client_sdk.client": ("AggregatorClient",),
    "client_sdk.config": ("Limits",),
    "client_sdk.errors": (
        "FedQuorumError",
        "InsecureTransportError",
        "ManifestError",
        "ManifestForkError",
        "PolicyError",
        "PrivacyBudgetError",
        "PrivacyClaimError",
        "RunFailedError",
        "ServerError",
        "SessionRefusedError",
        "TrainerError",
        "TranscriptError",
        "TransportError",
        "UntrustedAnswerError",
        "UsageError",
    ),
    "client_sdk.masking.trust": ("PeerTrust", "load_roster"),
    "client_sdk.operator": ("Enrolment", "Operator"),
    "client_sdk.participant": ("participate",),
    "client_sdk.performer": ("Participation",),
    "client_sdk.privacy.policy": ("PrivacyPolicy", "load_policy"),
    "client_sdk.session.progress": ("Progress",),
    "client_sdk.session.work": (
        "Evaluator",
        "ExamplePrivacy",
        "TrainedDelta",
        "TrainedModel",
        "Trainer",
        "TrainingResult",
        "TrainingTask",
    ),
    "client_sdk.simulation": ("SimulatedRound", "Simulation", "simulate"),
    "client_sdk.transfer": ("StoredModel",),
    "fl_protocol.arrays": ("RawTensor", "Tensor"),
    "fl_protocol.runs": ("Run", "RunSpec"),
    "fl_protocol.specs.rounds": ("BufferedRoundSpec", "RoundSpec"),
    "fl_protocol.specs.training": ("TrainingSpec",),
    "fl_protocol.tasks": ("EvaluationReport",),
}
_HOME_OF: Final = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'client_sdk' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
