"""What a client is asked to do, what it answers and the receipt it gets; clients and their enrolment."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from fl_protocol.attributes import AttributeName, AttributeValue
from fl_protocol.manifests import ManifestReference
from fl_protocol.messages import MAX_EXACT_INTEGER, Metrics, Name, RequestMessage, ResponseMessage, Timestamp
from fl_protocol.privacy_claims import PrivacyClaim
from fl_protocol.specs.algorithms import Algorithm, FedAvgAlgorithm
from fl_protocol.specs.encodings import Encoding
from fl_protocol.specs.parameters import ParametersSpec
from fl_protocol.specs.privacy import Privacy
from fl_protocol.specs.secure_aggregation import SecureAggregation
from fl_protocol.specs.skipping import NoSkipping, Skipping
from fl_protocol.specs.training import TrainingSpec


class TaskKind(StrEnum):
    """What a task asks for: an update, or metrics of the global model on local data."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class ControlVariate(ResponseMessage):
    """Where SCAFFOLD's server control variate of a model version is, and what its bytes must be."""

    url: str
    digest: str
    num_bytes: int


class Task(ResponseMessage):
    """What one client is asked to do in one round.

    For SCAFFOLD `control_variate` is null while the server's is zero (version 0 and one that is published again), and
    `counted_update` is the digest of this client's newest update that a model published since then holds, null if
    there is none: the client's own control variate is the one that it computed with that update, or zero.
    Where `skipping` or an encoding has clients keep what they did not send, `counted_update` says likewise which count.
    `privacy_claim` is null in a run without privacy, `manifest` in one without secure aggregation.
    """

    task_id: str
    run_id: str
    round: int
    attempt: int
    kind: TaskKind
    base_version: int
    model_url: str
    model_digest: str
    model_num_bytes: int
    training: TrainingSpec
    encoding: Encoding
    privacy: Privacy
    secure_aggregation: SecureAggregation
    deadline_at: Timestamp
    max_num_bytes: int
    parameters: ParametersSpec = ParametersSpec()
    algorithm: Algorithm = FedAvgAlgorithm()
    control_variate: ControlVariate | None = None
    counted_update: str | None = None
    privacy_claim: PrivacyClaim | None = None
    manifest: ManifestReference | None = None
    skipping: Skipping = NoSkipping()


class Receipt(ResponseMessage):
    """Proof that an update or an evaluation is durable and will be counted exactly once."""

    update_id: str
    task_id: str
    run_id: str
    round: int
    digest: str
    num_bytes: int
    accepted_at: Timestamp


class EvaluationReport(RequestMessage):
    """What a client measured of the global model on its own data."""

    num_examples: Annotated[int, Field(ge=1, le=MAX_EXACT_INTEGER)]
    metrics: Metrics


class EnrolmentTokenRequest(RequestMessage):
    """How many clients a new enrolment token may create, and for how long."""

    max_uses: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    expires_in_seconds: Annotated[float, Field(ge=1, le=366 * 86400)] = 86400


class EnrolmentToken(ResponseMessage):
    """An enrolment token; the secret is shown this once."""

    token: str
    max_uses: int
    expires_at: Timestamp


class ClientRequest(RequestMessage):
    """Enrols a client: a name for people and attributes for selection."""

    name: Name
    attributes: dict[AttributeName, AttributeValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bound_attributes(self) -> Self:
        if len(self.attributes) > 64:
            raise ValueError(f"a client has at most 64 attributes, got {len(self.attributes)}")
        return self


class Client(ResponseMessage):
    """An enrolled client, as the operator sees it."""

    client_id: str
    name: str
    attributes: dict[str, str]
    created_at: Timestamp
    last_seen_at: Timestamp | None
    revoked_at: Timestamp | None


class EnrolledClient(ResponseMessage):
    """A client just enrolled; the token is shown this once."""

    client_id: str
    name: str
    attributes: dict[str, str]
    token: str
